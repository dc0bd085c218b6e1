//! What a start makes of a state directory that an older daemon, a crash, a power cut, a bad disk, a full one or another
//! clock left behind: nothing that was promised is lost or done twice, what is damaged is told and kept, and the rest goes on.

mod common;
mod recovery {
    pub mod clock;
    pub mod damage;
    pub mod layout;
    pub mod many;
    pub mod older;
    pub mod promises;
    pub mod running_out;
    pub mod state;
    pub mod unwritable;
}
