//! The pid file: written once the gateway listens, removed on the way out.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::StartError;

#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    pub fn write(path: PathBuf) -> Result<PidFile, StartError> {
        // Why: aside and renamed, so that nobody ever reads half a number.
        let aside = path.with_extension("pid.tmp");
        let written = fs::File::create(&aside)
            .and_then(|mut file| writeln!(file, "{}", std::process::id()))
            .and_then(|()| fs::rename(&aside, &path));
        match written {
            Ok(()) => Ok(PidFile(path)),
            Err(source) => Err(StartError::PidFile { path, source }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::warn!("cannot remove the pid file {}: {error}", self.0.display());
        }
    }
}
