//! RFC 6455 and RFC 7692 as pure functions over bytes: no socket, no clock, no allocation where nothing is partial.

/// A data message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8, already checked.
    Text,
    /// Any bytes.
    Binary,
}

/// A parsed request head; borrows from the bytes received.
#[derive(Clone, Debug, Default)]
pub struct Head<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// What follows `?`, without it; empty if there is none.
    pub query: &'a str,
    /// Minor version of HTTP/1.
    pub version: u8,
    /// Names as sent, values as bytes.
    pub headers: Vec<(&'a str, &'a [u8])>,
}
