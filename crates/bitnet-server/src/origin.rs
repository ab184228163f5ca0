//! Which web pages may use the server.
//!
//! A browser sends requests for any page. `Origin` tells whose page it is, but not always, and only next to `Host`, the name that
//! the page calls the server by: where both are the same, the page is the server's own. So the name is looked at before anything else. A
//! page may have its own name lead to this machine once it is loaded (DNS rebinding), and nothing but that name is then wrong.

use crate::{ApiError, Server};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::net::IpAddr;

/// The address that a request came in on; one that came over no socket has none.
#[derive(Clone, Copy)]
pub(crate) struct Bound(pub IpAddr);

/// Refuses requests to a name that is not the server's. Listening on an address of this machine alone, it goes by `localhost`, by all
/// such addresses, and by the names that it was told. On others, any name is right unless some were told: it is reached by what only its
/// owner knows, and a page that leads its own name there has no key. Whoever gives no name is no browser.
pub(crate) fn check_host(server: &Server, bound: Bound, headers: &HeaderMap) -> Result<(), ApiError> {
    let told = &server.options.hosts;
    if told.is_empty() && !bound.0.is_loopback() {
        return Ok(());
    }
    let is_ours =
        |name: &str| is_local(name) || told.iter().any(|n| n == "*" || n.eq_ignore_ascii_case(name));
    for host in headers.get_all(header::HOST) {
        let name = host.to_str().map_or("", name);
        if !is_ours(name) {
            let message = format!(
                "requests may not be addressed to {name:?}; --allowed-hosts gives the server further names"
            );
            return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("host"));
        }
    }
    Ok(())
}

/// The origin of a page that may use the server from elsewhere: this machine served it, or it was named.
pub(crate) fn known_origin(server: &Server, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    let named = server.options.origins.iter().any(|known| known == "*" || known == text);
    (named || is_local(name(authority(text)?))).then(|| origin.clone())
}

/// Refuses what a page asks that neither came from here nor may use the server.
pub(crate) fn check_origin(server: &Server, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = host.is_some() && origin.to_str().ok().and_then(authority) == host;
    if own || known_origin(server, headers).is_some() {
        return Ok(());
    }
    let message = "pages of this origin may not use the server; --cors-origin names those that may";
    Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code("origin"))
}

/// What follows the scheme of an origin: a name, and a port where it is not the scheme's.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// The name, or the address without its brackets, in front of a port.
fn name(authority: &str) -> &str {
    let name = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next(),
        None => authority.split(':').next(),
    };
    name.unwrap_or_default()
}

/// Whether a name leads to this machine wherever it is looked up.
fn is_local(name: &str) -> bool {
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests;
