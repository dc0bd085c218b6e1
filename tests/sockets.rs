//! The sockets clients come in by: whose the Unix socket is, and those a service manager hands over.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;

use common::{Connection, Daemon, Home, Request, command, free_port, repository, run_command, shell, signal};

const CAT: &str = "[agents.cat]\ncommand = [\"cat\"]\n";

/// The numbers of the groups this user may give files to: all of them if it is root.
fn another_group() -> Option<String> {
    let ids = shell("id -u; id -G").expect(0).text();
    let (user, groups) = ids.split_once('\n').expect("two lines");
    let own = shell("id -g").expect(0).text();
    match user {
        "0" => Some("1".to_owned()),
        _ => groups.split_whitespace().find(|group| *group != own.trim()).map(str::to_owned),
    }
}

#[test]
fn the_socket_belongs_to_the_group_it_is_given_to() {
    let own = shell("id -g").expect(0).text().trim().to_owned();
    for group in [Some(String::new()), Some(own.clone()), another_group()].into_iter().flatten() {
        let daemon = Daemon::start(&format!("[gateway]\nsocket_group = {group:?}\n{CAT}"));
        let socket = fs::metadata(daemon.home().socket()).expect("it is there");
        let expected = if group.is_empty() { &own } else { &group };
        assert_eq!(
            (socket.gid().to_string().as_str(), socket.permissions().mode() & 0o777),
            (expected.as_str(), 0o660)
        );
        daemon.get("/health").expect(200);
        daemon.stop();
    }
    let home = Home::new("[gateway]\nsocket_group = \"no-such-group\"\n");
    for (arguments, says) in [
        (&["--check"][..], "gateway.socket_group: there is no group \"no-such-group\""),
        (&[], "gateway.socket_group = \"no-such-group\""),
    ] {
        let refused = run_command(home.kurultaid().args(arguments), b"").expect(78);
        assert!(refused.stderr.contains(says) && refused.stderr.contains("addgroup"), "{}", refused.stderr);
        assert!(!home.socket().exists());
    }
}

/// Makes it start as systemd starts a service with sockets: they are descriptors 3 and up, and LISTEN_PID is the number
/// the process still has after the exec. A word each: `tcp:PORT`, `any:PORT`, `unix:PATH`, `udp`, `file`.
fn activate<'a>(start: &'a mut Command, sockets: &[String]) -> &'a mut Command {
    let program = start.get_program().to_owned();
    let arguments: Vec<_> = start.get_args().map(OsStr::to_owned).collect();
    *start = command(repository().join("tests/agents/activate"));
    start.args(sockets).arg("--").arg(program).args(arguments)
}

#[test]
fn sockets_of_a_service_manager_are_used_and_left_in_place() {
    let (port, unused) = (free_port(), free_port());
    let home = Home::new(&format!(
        "[gateway]\nlisten = \"127.0.0.1:{unused}\"\n[workers]\nmax = 1\n[agents.look]\n\
         command = [\"sh\", \"-c\", \"ls -l /proc/self/fd; env\"]\nenv_pass = [\"PATH\", \"LISTEN_PID\", \"LISTEN_FDS\"]\n"
    ));
    fs::create_dir_all(home.path().join("run")).expect("the directory can be written");
    let socket = home.socket();
    let sockets = [format!("tcp:{port}"), format!("unix:{}", socket.display())];
    let daemon = home.start_with(|start| activate(start, &sockets));
    let before = daemon.footprint();
    let ask = |request: &Request| Connection::tcp(port).expect("the daemon listens").ask(request);
    assert_eq!(ask(&Request::get("/health")).status, 200);
    assert!(Connection::tcp(unused).is_err(), "what the manager opened stands for gateway.listen");
    let seen = ask(&Request::post("/v1/agents/look/tasks?wait=30", "")).expect(200).text();
    assert!(!seen.contains("socket:"), "a worker has no listener: {seen}");
    assert!(!seen.contains("LISTEN_"), "nor the variables that tell of one: {seen}");
    let started = &daemon.logged("DAEMON_STARTED")[0];
    assert_eq!(started["listen"], format!("127.0.0.1:{port}"));
    assert_eq!(started["socket"], socket.display().to_string());
    daemon.has_no_workers();
    let after = daemon.footprint();
    assert_eq!((after.fds, after.threads), (before.fds, before.threads));
    // Not `stop`, which expects the socket to be gone.
    signal(daemon.pid(), "TERM");
    let home = daemon.ended_leaving_its_socket();
    assert!(fs::metadata(&socket).is_ok_and(|found| found.file_type().is_socket()), "it is the manager's to remove");
    drop(home);
}

#[test]
fn a_manager_that_hands_over_one_kind_leaves_the_other_to_the_configuration() {
    let port = free_port();
    let daemon = Home::new(CAT).start_with(|start| activate(start, &[format!("tcp:{port}")]));
    assert_eq!(Connection::tcp(port).expect("the daemon listens").ask(&Request::get("/health")).status, 200);
    daemon.get("/health").expect(200);
    daemon.stop();
}

#[test]
fn what_cannot_be_listened_on_is_told_by_its_number() {
    let home = Home::new(CAT);
    let port = free_port();
    let open = run_command(activate(&mut home.kurultaid(), &[format!("any:{port}")]), b"").expect(78);
    assert!(open.stderr.contains("set gateway.token_file"), "{}", open.stderr);
    for (sockets, fd, why) in [
        (vec!["udp".to_owned()], 3, "no listening stream socket"),
        (vec![format!("tcp:{port}"), "file".to_owned()], 4, "no listening stream socket"),
        (vec!["udp".to_owned(); 9], 11, "the most"),
    ] {
        let refused = run_command(activate(&mut home.kurultaid(), &sockets), b"").expect(71);
        let said = format!("descriptor {fd} of the service manager");
        assert!(refused.stderr.contains(&said) && refused.stderr.contains(why), "{sockets:?}: {}", refused.stderr);
    }
}

#[test]
fn variables_meant_for_another_process_are_nothing_to_a_daemon() {
    let daemon = Home::new(CAT).start_with(|start| start.env("LISTEN_PID", "1").env("LISTEN_FDS", "2"));
    daemon.get("/health").expect(200);
    daemon.stop();
}
