//! The HTTP side: who may talk, how much and how long; JSON in, JSON out.
//!
//! Owns the door, the handlers, routes and access. May import core's types, the spool for bodies and results, the
//! scheduler's calls, tiny_http and httparse. Must never know workers, nor memory beyond a status snapshot.

mod access;
mod answer;
mod body;
mod conn;
mod door;
mod exchange;
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod head;
mod json;
mod lingering;
mod listeners;
mod outgoing;
mod page;
mod query;
mod range;
mod rate;
mod render;
mod routes;
mod submit;
mod upload;

pub use access::Access;
pub use body::Patience;
pub use conn::Places;
pub use door::{Arrival, Door, DoorPorts, DoorSettings, Return, sockets_max};
pub use exchange::{Command, CommandPort, Exchange, RequestIds};
pub use handler::{Handler, HandlerPorts, Shared};
pub use listeners::{INHERITED_MAX, LISTENERS_MAX, Listener};
pub use rate::SubmitRate;
