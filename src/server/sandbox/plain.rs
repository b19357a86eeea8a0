//! The reference's protocol.

use super::{Request, Response, Service, StatusCode, not_found, response, wrong_method};

pub(super) const HEALTH: &str = "/health";

#[derive(Default)]
pub(super) struct Plain {}

/// Answers a request.
pub(super) async fn serve(service: &Service, request: Request) -> Response {
    let _ = (service, request, wrong_method("GET"));
    not_found()
}

/// The answer to somebody who may not use the server.
pub(super) fn refused(status: StatusCode, detail: &str) -> Response {
    response(status, "application/json", format!("{{\"success\": false, \"error\": \"{detail}\"}}"))
}
