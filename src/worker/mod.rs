//! Every child process.
use crate::core::{ids::WorkerId, order::Order};
pub struct SupervisorHandle;
#[derive(Debug)]
pub struct QueueFull(pub Order);
impl SupervisorHandle {
    pub fn send(&self, _w: WorkerId, o: Order) -> Result<(), QueueFull> {
        Err(QueueFull(o))
    }
}
