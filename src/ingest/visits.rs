//! Who is connected to a publishing port, and who goes when it is full.
//!
//! Anybody who reaches the port can connect and say nothing. So a connection is a stranger's until a call with a token that
//! holds came over it (without tokens: any call), and when the port is full the stranger who is there longest makes room for
//! the next: holding every place takes as many connections again and again, and publishers keep theirs. Strangers may ask for
//! health, and how the services look, few things at once.

use axum::body::{Body, Bytes, HttpBody};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Notify;

/// Calls a stranger may have open at once on one connection: a health watch or two, and reflection.
pub(super) const STRANGER_CALLS_MAX: usize = 8;

/// One connection, as its task, its requests and the accept loop see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Visit(Arc<State>);

#[derive(Debug, Default)]
struct State {
    known: AtomicBool,
    ended: AtomicBool,
    calls: AtomicUsize,
    cut: Notify,
}

impl Visit {
    /// A call with a token that holds came over it.
    pub(super) fn is_known(&self) -> bool {
        self.0.known.load(Ordering::Relaxed)
    }

    /// Says so.
    pub(super) fn make_known(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }

    /// A stranger's call begins; `None`: it has too many open.
    pub(super) fn begin_call(&self) -> Option<Call> {
        let begun = self.0.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let call = Call(self.0.clone());
        (begun <= STRANGER_CALLS_MAX).then_some(call)
    }

    /// Completes when it has to make room.
    pub(super) async fn cut(&self) {
        self.0.cut.notified().await;
    }

    /// It is over.
    pub(super) fn end(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }

    fn is_stranger(&self) -> bool {
        !self.is_known() && !self.0.ended.load(Ordering::Relaxed)
    }
}

/// An open call of a stranger; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Call(Arc<State>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer that keeps its call open until it is sent or given up.
pub(super) struct Held {
    body: Body,
    _call: Call,
}

impl Held {
    pub(super) fn new(body: Body, call: Call) -> Held {
        Held { body, _call: call }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// The visits of one port that may have to make room, oldest first. Holds at most twice as many as are connected, and a few.
#[derive(Default)]
pub(super) struct Strangers(VecDeque<Visit>);

impl Strangers {
    /// A new one, when there are `connections` in all. O(1) on average.
    pub(super) fn add(&mut self, visit: Visit, connections: usize) {
        if self.0.len() > 2 * connections + 16 {
            self.0.retain(Visit::is_stranger);
        }
        self.0.push_back(visit);
    }

    /// Cuts the oldest; `false`: there is none.
    pub(super) fn cut_oldest(&mut self) -> bool {
        while let Some(visit) = self.0.pop_front() {
            if visit.is_stranger() {
                visit.0.cut.notify_one();
                return true;
            }
        }
        false
    }

    /// Whether there is one.
    pub(super) fn any(&mut self) -> bool {
        while self.0.front().is_some_and(|visit| !visit.is_stranger()) {
            self.0.pop_front();
        }
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_who_is_known_or_gone_does_not() {
        let mut strangers = Strangers::default();
        let visits: Vec<Visit> = (0..4).map(|_| Visit::default()).collect();
        for (connections, visit) in visits.iter().enumerate() {
            strangers.add(visit.clone(), connections);
        }
        visits[0].make_known();
        visits[1].end();
        let is_cut = |visit: &Visit| polled_once(visit.cut()).is_some();
        assert!(strangers.any() && strangers.cut_oldest());
        assert_eq!(visits.iter().map(is_cut).collect::<Vec<_>>(), [false, false, true, false]);
        assert!(strangers.cut_oldest() && !strangers.cut_oldest() && !strangers.any());
    }

    /// What a future gives when it is polled once.
    fn polled_once<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn a_stranger_has_few_calls_open_at_once() {
        let visit = Visit::default();
        let mut calls: Vec<Call> = std::iter::from_fn(|| visit.begin_call()).collect();
        assert_eq!(calls.len(), STRANGER_CALLS_MAX);
        calls.pop();
        assert!(visit.begin_call().is_some() && visit.begin_call().is_some(), "one place, and it is given back");
    }

    #[test]
    fn visits_that_are_over_are_not_remembered() {
        let mut strangers = Strangers::default();
        for _ in 0..10_000 {
            let visit = Visit::default();
            strangers.add(visit.clone(), 1);
            visit.end();
        }
        assert!(strangers.0.len() <= 20, "{}", strangers.0.len());
    }
}
