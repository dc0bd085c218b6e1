//! The yardstick: `tiny_http::Server` as its README shows it, one thread that answers.

use tiny_http::{Response, Server};

pub fn serve(port: u16) {
    let server = Server::http(("127.0.0.1", port)).expect("the port is free");
    for request in server.incoming_requests() {
        // A client that has gone is the next request's business.
        let _ = request.respond(Response::from_string("hello world"));
    }
}
