//! Cgroups: what this host allows, a group of its own for each worker, and how full our own group is.
//!
//! Version 2 where its memory controller is delegated to us, version 1 where its memory hierarchy may be written, else
//! nothing: then the watchdog alone holds the limits. Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst.

mod groups;
mod hold;
mod own;
mod place;
#[cfg(test)]
mod tests;
mod usher;
mod worker_group;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::file::{has_attribute, may_write};
pub use groups::{Cgroups, Groups};
pub use hold::Hold;
pub use own::OwnCgroup;
use place::Hierarchy;
pub use usher::Usher;
pub use worker_group::WorkerGroup;

/// How long a thread that ends waits for a seat that is being made for it. Far more than the kernel takes.
const LEAVE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// What of cgroups can be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `needs_leaf`: our own processes have to move into a child first, since a cgroup of version 2 that gives its
    /// controllers on has no processes of its own.
    V2 {
        needs_leaf: bool,
    },
    V1,
    None,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::V2 { .. } => "v2",
            Kind::V1 => "v1",
            Kind::None => "none",
        })
    }
}

/// What was found, before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    pub kind: Kind,
    /// Where workers' groups go, or would have gone; empty without any hierarchy.
    pub path: PathBuf,
    /// For people: why it is used, or why not and what to do.
    pub finding: String,
}

impl Cgroups {
    /// Looks and changes nothing. `root` is `/`, or a directory that stands for it.
    pub fn detect(root: &Path) -> Detected {
        let found = place::find(root);
        if let Some(v2) = found.v2.as_ref().filter(|v2| has_memory_controller(&v2.own)) {
            return detect_v2(root, v2);
        }
        match (found.v1, found.v2) {
            (Some(v1), _) => detect_v1(&v1),
            (None, Some(v2)) => nothing(
                &v2.own,
                "version 2 is mounted, but its memory controller does not reach our cgroup: boot without cgroup_disable=memory, or set Delegate=yes in the service",
            ),
            (None, None) => nothing(Path::new(""), "no cgroup hierarchy with a memory controller is mounted"),
        }
    }
}

fn nothing(path: &Path, why: &str) -> Detected {
    Detected { kind: Kind::None, path: path.to_owned(), finding: why.to_owned() }
}

fn has_memory_controller(cgroup: &Path) -> bool {
    words(&cgroup.join("cgroup.controllers")).iter().any(|name| name == "memory")
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn detect_v1(v1: &Hierarchy) -> Detected {
    if v1.is_read_only {
        return nothing(&v1.own, "version 1's memory hierarchy is mounted read-only");
    }
    if !may_write(&v1.own) {
        return nothing(&v1.own, "our cgroup of version 1 may not be written by this user");
    }
    let finding = "version 1's memory controller holds hard limits".to_owned();
    Detected { kind: Kind::V1, path: v1.own.clone(), finding }
}

fn detect_v2(root: &Path, v2: &Hierarchy) -> Detected {
    if v2.is_read_only {
        return nothing(&v2.own, "version 2 is mounted read-only");
    }
    let (base, needs_leaf) = match place_v2(root, v2) {
        Ok(place) => place,
        Err(why) => return nothing(&v2.own, why),
    };
    if ["", "cgroup.procs", "cgroup.subtree_control"].iter().any(|file| !may_write(&base.join(file))) {
        return nothing(
            &base,
            "our cgroup of version 2 may not be written by this user: set Delegate=yes in the service",
        );
    }
    let finding = "version 2's memory controller holds hard limits".to_owned();
    Detected { kind: Kind::V2 { needs_leaf }, path: base, finding }
}

/// Where workers' groups may go, and whether we have to leave that place for a child of it.
fn place_v2(root: &Path, v2: &Hierarchy) -> Result<(PathBuf, bool), &'static str> {
    // Only the root of the whole hierarchy has no type, and only it may have both processes and controlled children.
    if !v2.own.join("cgroup.type").exists() {
        return Ok((v2.own.clone(), false));
    }
    // systemd's DelegateSubgroup=: the service manager has made the leaf for us already.
    if let Some(parent) = v2.own.parent().filter(|parent| v2.own != v2.mount && is_delegated(parent)) {
        return Ok((parent.to_owned(), false));
    }
    if is_unit(&v2.own) && !is_delegated(&v2.own) {
        return Err("our cgroup belongs to the service manager: set Delegate=yes in the service");
    }
    if has_strangers(root, &v2.own) {
        return Err(
            "our cgroup of version 2 has other processes than ours, which must not be moved: give the daemon one of its own",
        );
    }
    Ok((v2.own.clone(), true))
}

/// systemd(1) marks what it gives away: `user.delegate` since version 251, before that for root only.
fn is_delegated(cgroup: &Path) -> bool {
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| has_attribute(cgroup, name, b'1'))
}

fn is_unit(cgroup: &Path) -> bool {
    let kind = cgroup.extension().and_then(|kind| kind.to_str());
    matches!(kind, Some("service" | "scope" | "slice"))
}

/// Somebody else than the daemon and its children, which are the guardian alone at the start.
fn has_strangers(root: &Path, cgroup: &Path) -> bool {
    let us = std::process::id().to_string();
    words(&cgroup.join("cgroup.procs")).iter().any(|pid| *pid != us && parent_of(root, pid).as_deref() != Some(&us))
}

fn parent_of(root: &Path, pid: &str) -> Option<String> {
    let stat = fs::read_to_string(root.join("proc").join(pid).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1).map(str::to_owned)
}
