//! All `unsafe` and every libc call, behind safe functions with the source of their behaviour in the comment.
//!
//! May import libc. Must never know anything above it.
#![allow(unsafe_code)]

pub mod clock;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod footprint;
pub mod guard;
pub mod inherited;
pub mod launch;
pub mod limits;
pub mod mark;
pub mod pipe;
pub mod poll;
pub mod priority;
pub mod proc_self;
pub mod process;
pub mod reserve;
pub mod socket;
pub mod user;
