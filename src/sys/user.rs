//! Users and groups by name.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;

/// What a process needs to become a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// All groups of the user, the primary one included.
    pub groups: Vec<u32>,
}

impl User {
    /// Makes this process that user, for good. Only a process that may change users can.
    pub fn assume(&self) -> io::Result<()> {
        // SAFETY: the pointer and length are those of a live vector; the others are plain numbers.
        let failed = unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr()) != 0
                || libc::setresgid(self.gid, self.gid, self.gid) != 0
                || libc::setresuid(self.uid, self.uid, self.uid) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const BUFFER_START: usize = 1024;
const BUFFER_MAX: usize = 1024 * 1024;
/// NGROUPS_MAX of Linux.
const GROUPS_MAX: usize = 65_536;

/// `None` if there is no such user: getpwnam_r(3), getgrouplist(3).
pub fn lookup(name: &str) -> io::Result<Option<User>> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut buffer = vec![0 as libc::c_char; BUFFER_START];
    let (uid, gid) = loop {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: the name ends with NUL, the buffer's length is its own, and both outputs are live locals.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found)
        };
        match error {
            // Not found is reported in several ways: getpwnam_r(3), ERRORS.
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: a non-null result says that the entry has been filled in.
                let entry = unsafe { entry.assume_init_ref() };
                break (entry.pw_uid, entry.pw_gid);
            }
            libc::EINTR => {}
            libc::ERANGE if buffer.len() < BUFFER_MAX => buffer.resize(buffer.len() * 4, 0),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    };
    let mut groups = vec![0; 32];
    loop {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: the name ends with NUL, and `count` says how many groups fit.
        let fits = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &mut count) } != -1;
        if fits {
            groups.truncate(usize::try_from(count).unwrap_or(0));
            return Ok(Some(User { uid, gid, groups }));
        }
        if groups.len() >= GROUPS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ERANGE));
        }
        groups.resize(groups.len() * 4, 0);
    }
}

/// The number of a group by its name, or by the number itself; `None` if there is no such name: getgrnam_r(3).
pub fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut buffer = vec![0 as libc::c_char; BUFFER_START];
    loop {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: the name ends with NUL, the buffer's length is its own, and both outputs are live locals.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found)
        };
        match error {
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: a non-null result says that the entry has been filled in.
                return Ok(Some(unsafe { entry.assume_init_ref() }.gr_gid));
            }
            libc::EINTR => {}
            libc::ERANGE if buffer.len() < BUFFER_MAX => buffer.resize(buffer.len() * 4, 0),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nobody_else_of_that_number() {
        let root = lookup("root").unwrap().expect("there is no root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0), "{root:?}");
        assert_eq!(lookup("no-such-user-here").unwrap(), None);
        assert_eq!(lookup("nul\0byte").unwrap(), None);
    }

    #[test]
    fn a_group_is_found_by_its_name_or_number() {
        assert_eq!(group("root").unwrap(), Some(0));
        assert_eq!(group("1234").unwrap(), Some(1234));
        assert_eq!(group("no-such-group-here").unwrap(), None);
        assert_eq!(group("-1").unwrap(), None);
    }
}
