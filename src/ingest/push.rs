//! What gRPC and HTTP have in common: one push of `order.Proxy`, problems as a code and a sentence, and panics caught.

use super::Control;
use crate::frame::{Publication, Target};
use crate::metrics::ControlMetrics;
use crate::topics::Refusal;
use bytes::Bytes;
use futures_util::FutureExt;
use std::borrow::Cow;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use tonic::{Code, Status};

/// Why a request was not served, in either protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// gRPC's number for it.
    pub code: Code,
    /// What to do.
    pub message: Cow<'static, str>,
}

impl Problem {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Problem {
        Problem { code, message: message.into() }
    }

    /// No token, or a wrong one.
    pub(super) fn unauthorized() -> Problem {
        Problem::new(Code::Unauthenticated, "send a token of publish.tokens_file as \"authorization: Bearer TOKEN\"")
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let code = match refusal {
            Refusal::TooLarge { .. } | Refusal::NameTooLong { .. } | Refusal::NotUtf8 => Code::InvalidArgument,
            Refusal::StreamTooLarge { .. } => Code::InvalidArgument,
            Refusal::NoRoom { .. } | Refusal::TooManyTopics { .. } => Code::ResourceExhausted,
            Refusal::StreamBusy { .. } | Refusal::StreamRefused { .. } => Code::ResourceExhausted,
            Refusal::Draining | Refusal::StreamAway { .. } => Code::Unavailable,
            Refusal::StreamLate { .. } => Code::DeadlineExceeded,
        };
        Problem::new(code, refusal.to_string())
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Status {
        Status::new(problem.code, problem.message)
    }
}

/// One push as gpush's publishers send it: `uid` set, to that user; else `topic` set, to its subscribers; else to everyone.
///
/// # Errors
/// Nobody has any of it. A push without any field is refused: gpush would send everyone an empty message.
pub(super) async fn push(control: &Control, uid: &str, topic: &str, data: Bytes) -> Result<(), Problem> {
    if uid.is_empty() && topic.is_empty() && data.is_empty() {
        return Err(Problem::new(
            Code::InvalidArgument,
            "the push has no uid, no topic and no data, it would send everyone an empty message: set at least one",
        ));
    }
    control.publish(Publication { target: Target::user_or_topic(uid, topic), data }).await?;
    Ok(())
}

/// Runs a handler; if it panics, that is our mistake: it is counted, logged by the panic hook, and answered INTERNAL.
pub(super) async fn guarded<T>(
    metrics: &ControlMetrics,
    handler: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    // Unwind safety: `Control` says why it may be used after a panic; a handler has no other state.
    AssertUnwindSafe(handler).catch_unwind().await.unwrap_or_else(|_| Err(panicked(metrics)))
}

/// As [`guarded`], for what doesn't wait.
pub(super) fn guarded_now<T>(metrics: &ControlMetrics, handler: impl FnOnce() -> T) -> Result<T, Problem> {
    std::panic::catch_unwind(AssertUnwindSafe(handler)).map_err(|_| panicked(metrics))
}

fn panicked(metrics: &ControlMetrics) -> Problem {
    metrics.handler_panics.add(1);
    Problem::new(Code::Internal, "the gateway made a mistake, see its log: report it")
}
