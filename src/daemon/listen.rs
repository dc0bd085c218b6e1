//! The two listeners.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::StartError;
use crate::config::Config;

/// Users of the daemon's group may talk to it.
const SOCKET_MODE: u32 = 0o660;

pub struct Listeners {
    pub tcp: Option<TcpListener>,
    pub unix: UnixListener,
    pub socket: SocketFile,
}

/// Removed on the way out.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl SocketFile {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub fn listen(config: &Config) -> Result<Listeners, StartError> {
    let tcp = match config.gateway.listen_address() {
        None => None,
        Some(address) => Some(TcpListener::bind(address).map_err(|source| StartError::Listen {
            address: address.to_string(),
            key: "gateway.listen",
            source,
        })?),
    };
    let path = config.daemon.runtime_dir.join("kurultai.sock");
    let unix = listen_unix(&config.daemon.runtime_dir, &path).map_err(|source| StartError::Listen {
        address: path.display().to_string(),
        key: "daemon.runtime_dir",
        source,
    })?;
    Ok(Listeners { tcp, unix, socket: SocketFile(path) })
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
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}
