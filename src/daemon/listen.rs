//! The sockets clients come in by: opened here, or handed over by a service manager (sd_listen_fds(3)).

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::StartError;
use super::predecessor::{PATIENCE, outlast_listener};
use crate::config::Config;
use crate::gateway::{INHERITED_MAX, Listener};
use crate::sys;
use crate::sys::inherited::Kind;

/// What a new socket has not: the owner and the group may talk to the daemon, nobody else.
const SOCKET_UMASK: u32 = 0o117;

pub struct Listeners {
    pub all: Vec<Listener>,
    /// `None`: the service manager's, which it removes itself.
    pub socket: Option<SocketFile>,
    /// Where they are, for the log.
    pub addresses: Vec<SocketAddr>,
    pub paths: Vec<PathBuf>,
}

/// Removed on the way out.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// `gateway.socket_group`.
    pub group: Option<u32>,
}

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// `inherited`: what a service manager handed over. Of a kind it handed over, none is opened here.
pub fn listen(config: &Config, inherited: Vec<OwnedFd>) -> Result<Listeners, StartError> {
    let mut listeners = Listeners { all: Vec::new(), socket: None, addresses: Vec::new(), paths: Vec::new() };
    if inherited.len() > INHERITED_MAX {
        let why = format!("there are {} of them, and {INHERITED_MAX} is the most", inherited.len());
        return Err(StartError::Activation { fd: inherited[INHERITED_MAX].as_raw_fd(), why });
    }
    for fd in inherited {
        let number = fd.as_raw_fd();
        listeners.take(config, fd, number)?;
    }
    if listeners.addresses.is_empty()
        && let Some(address) = config.gateway.listen_address()
    {
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let tcp = outlast_listener(connect, || TcpListener::bind(address)).map_err(|source| StartError::Listen {
            address: address.to_string(),
            key: "gateway.listen",
            source,
        })?;
        listeners.addresses.push(tcp.local_addr().unwrap_or(address));
        listeners.all.push(Listener::Tcp(tcp));
    }
    if !listeners.all.iter().any(|listener| matches!(listener, Listener::Unix(_))) {
        let group = socket_group(config)?;
        let path = config.daemon.runtime_dir.join("kurultai.sock");
        let listen = || listen_unix(&config.daemon.runtime_dir, &path);
        let unix = outlast_listener(|| UnixStream::connect(&path), listen).map_err(|source| StartError::Listen {
            address: path.display().to_string(),
            key: "daemon.runtime_dir",
            source,
        })?;
        let socket = SocketFile { path: path.clone(), group };
        open_to_group(config, &socket)?;
        listeners.all.push(Listener::Unix(unix));
        listeners.socket = Some(socket);
        listeners.paths.push(path);
    }
    Ok(listeners)
}

impl Listeners {
    fn take(&mut self, config: &Config, fd: OwnedFd, number: i32) -> Result<(), StartError> {
        let unusable = |why: String| StartError::Activation { fd: number, why };
        match sys::inherited::kind(fd.as_fd()) {
            Kind::TcpListener => {
                let tcp = TcpListener::from(fd);
                let address = tcp.local_addr().map_err(|error| unusable(error.to_string()))?;
                // The rule of gateway.listen holds for whatever is listened on.
                if !address.ip().to_canonical().is_loopback() && config.gateway.token_file.is_empty() {
                    return Err(StartError::NoToken { address });
                }
                self.addresses.push(address);
                self.all.push(Listener::Tcp(tcp));
            }
            Kind::UnixListener => {
                let unix = UnixListener::from(fd);
                let address = unix.local_addr().map_err(|error| unusable(error.to_string()))?;
                self.paths.extend(address.as_pathname().map(Path::to_path_buf));
                self.all.push(Listener::Unix(unix));
            }
            Kind::Other => {
                let why = "it is no listening stream socket, TCP or Unix: use ListenStream= and Accept=no";
                return Err(unusable(why.to_string()));
            }
        }
        Ok(())
    }
}

fn listen_unix(directory: &Path, path: &Path) -> io::Result<UnixListener> {
    fs::create_dir_all(directory)?;
    // A daemon that was killed leaves its socket; one that lives answers.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    // Why not chmod(2) afterwards: a path may have become something else by then.
    sys::file::with_umask(SOCKET_UMASK, || UnixListener::bind(path))
}

/// `gateway.socket_group` as a number; `None` if there is none.
fn socket_group(config: &Config) -> Result<Option<u32>, StartError> {
    let name = &config.gateway.socket_group;
    if name.is_empty() {
        return Ok(None);
    }
    let refused = |why: String| StartError::SocketGroup { group: name.clone(), why };
    match sys::user::group(name) {
        Ok(Some(group)) => Ok(Some(group)),
        Ok(None) => Err(refused("there is no such group; create it with addgroup --system".to_string())),
        Err(error) => Err(refused(format!("{error}; look into /etc/group and nsswitch.conf"))),
    }
}

/// Not through a link: where the daemon drops root, the directory belongs to its user.
fn open_to_group(config: &Config, socket: &SocketFile) -> Result<(), StartError> {
    if let Some(group) = socket.group {
        lchown(socket.path(), None, Some(group)).map_err(|error| StartError::SocketGroup {
            group: config.gateway.socket_group.clone(),
            why: format!("{error}; start the daemon as root, or as a user of that group"),
        })?;
    }
    Ok(())
}
