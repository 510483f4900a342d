//! How a client that can't stay is told so.
//!
//! ```text
//!  Sending ──► ShuttingDown ──► Discarding ──► Closing
//!   503 out     our end said     its request     shutdown and close; the deadline leads here from anywhere,
//!                    └─────► ShuttingDownLate ───────▲           from ShuttingDown once that is done
//! ```
//!
//! The answer goes out before the request is read, which HTTP allows (RFC 9112 section 9.5). But closing a socket with
//! unread bytes in it sends a reset, and a reset makes the peer throw the answer away: so what it sends is read until
//! its end, a deadline or a bound. Pure: says what to do next.

/// Bytes of a request read for its answer's sake. A handshake's head is 8 KiB at most.
const DISCARDED_BYTES_MAX: usize = 65_536;

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// `connections_max`, or every shard is full.
    Full,
    /// Shards have room, but none took the client in time.
    Busy,
    /// `connections_per_address_max`.
    Address,
    /// `handshakes_per_s_max`.
    Rate,
    /// The gateway takes no new clients any more.
    Stopping,
}

macro_rules! response {
    ($length:literal, $sentence:literal) => {{
        // So that the length can't disagree with the sentence.
        const _: () = assert!($sentence.len() + 1 == $length);
        concat!(
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ",
            $length,
            "\r\nConnection: close\r\n\r\n",
            $sentence,
            "\n"
        )
        .as_bytes()
    }};
}

impl Reason {
    /// The whole answer.
    pub(super) fn response(self) -> &'static [u8] {
        match self {
            Reason::Full => {
                response!(85, "This gateway is full: it holds as many connections as it may. Try again in a moment.")
            }
            Reason::Busy => response!(73, "This gateway is too busy to take new connections: try again in a moment."),
            Reason::Address => response!(68, "Too many connections from this address: close some, then try again."),
            Reason::Rate => response!(57, "Too many new connections at once: try again in a moment."),
            Reason::Stopping => {
                response!(79, "This gateway is shutting down: try another one, or this one again in a moment.")
            }
        }
    }
}

/// What the accepting core does next for a refused client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Shut our side down.
    ShutdownWrite,
    /// Read and throw away.
    Discard,
    /// End it.
    Cut,
    /// Nothing: the last completions are on their way.
    Wait,
}

/// One refusal under way. Begins with the send of [`Reason::response`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Sending { length: usize },
    ShuttingDown,
    ShuttingDownLate,
    Discarding { discarded_bytes: usize },
    Closing,
}

impl Refusal {
    /// The answer of `length` bytes was submitted.
    pub(super) fn begun(length: usize) -> Refusal {
        Refusal::Sending { length }
    }

    /// What was submitted last completed with `result`: bytes, or `-errno`.
    pub(super) fn completed(&mut self, result: i32) -> Step {
        let bytes = usize::try_from(result);
        let (next, step) = match (&*self, bytes) {
            (Refusal::Closing, _) => (Refusal::Closing, Step::Wait),
            (Refusal::Sending { length }, Ok(sent)) if sent == *length => (Refusal::ShuttingDown, Step::ShutdownWrite),
            (Refusal::ShuttingDown, Ok(_)) => (Refusal::Discarding { discarded_bytes: 0 }, Step::Discard),
            (Refusal::Discarding { discarded_bytes }, Ok(bytes @ 1..))
                if discarded_bytes + bytes < DISCARDED_BYTES_MAX =>
            {
                (Refusal::Discarding { discarded_bytes: discarded_bytes + bytes }, Step::Discard)
            }
            // Its end, too many bytes, a short send or an error: nothing more can be told.
            _ => (Refusal::Closing, Step::Cut),
        };
        *self = next;
        step
    }

    /// Its deadline is over.
    pub(super) fn expired(&mut self) -> Step {
        let (next, step) = match self {
            Refusal::Closing => (Refusal::Closing, Step::Wait),
            // A kernel worker carries it out, on whatever the slot holds by then: freed now, it might hold the next client.
            Refusal::ShuttingDown | Refusal::ShuttingDownLate => (Refusal::ShuttingDownLate, Step::Wait),
            _ => (Refusal::Closing, Step::Cut),
        };
        *self = next;
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_http_with_its_reason_and_when_to_come_back() {
        for reason in [Reason::Full, Reason::Busy, Reason::Address, Reason::Rate, Reason::Stopping] {
            let text = std::str::from_utf8(reason.response()).unwrap();
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(text.as_bytes()).unwrap() else { panic!("{text}") };
            let value = |name: &str| {
                let header = response.headers.iter().find(|h| h.name == name).unwrap_or_else(|| panic!("{name}"));
                std::str::from_utf8(header.value).unwrap()
            };
            assert_eq!(response.code, Some(503));
            assert_eq!(value("Retry-After"), "1");
            assert_eq!(value("Connection"), "close");
            assert_eq!(value("Content-Length").parse::<usize>().unwrap(), text.len() - head);
            assert!(text[head..].ends_with(".\n") && text.len() - head > 20, "{text}");
        }
    }

    #[test]
    fn the_request_is_read_to_its_end_before_the_close() {
        let mut refusal = Refusal::begun(100);
        assert_eq!(refusal.completed(100), Step::ShutdownWrite);
        assert_eq!(refusal.completed(0), Step::Discard);
        assert_eq!(refusal.completed(500), Step::Discard);
        assert_eq!(refusal.completed(0), Step::Cut);
        assert_eq!(refusal.completed(0), Step::Wait);
    }

    #[test]
    fn a_client_that_sends_without_end_is_cut_at_the_bound() {
        let mut refusal = Refusal::begun(100);
        refusal.completed(100);
        refusal.completed(0);
        let reads = (1..).find(|_| refusal.completed(16_384) == Step::Cut).unwrap();
        assert_eq!(reads * 16_384, DISCARDED_BYTES_MAX);
    }

    #[test]
    fn a_failure_anywhere_cuts_at_once() {
        assert_eq!(Refusal::begun(100).completed(99), Step::Cut);
        assert_eq!(Refusal::begun(100).completed(-libc::EPIPE), Step::Cut);
        assert_eq!(Refusal::ShuttingDown.completed(-libc::ENOTCONN), Step::Cut);
        assert_eq!(Refusal::Discarding { discarded_bytes: 0 }.completed(-libc::ECONNRESET), Step::Cut);
    }

    #[test]
    fn the_deadline_cuts_once_from_anywhere() {
        for mut refusal in [Refusal::begun(1), Refusal::Discarding { discarded_bytes: 9 }] {
            assert_eq!(refusal.expired(), Step::Cut);
            assert_eq!(refusal.expired(), Step::Wait);
            assert_eq!(refusal.completed(1), Step::Wait);
        }
    }

    #[test]
    fn a_slot_is_not_freed_under_a_shutdown_that_may_yet_meet_its_next_tenant() {
        for result in [0, -libc::ENOTCONN] {
            let mut refusal = Refusal::ShuttingDown;
            assert_eq!(refusal.expired(), Step::Wait);
            assert_eq!(refusal.completed(result), Step::Cut);
            assert_eq!(refusal.completed(0), Step::Wait);
        }
    }
}
