//! `PullData`: every push that this gateway accepts, for whoever pulls: other halves of a gpush installation, and onlookers.
//!
//! ```text
//! admitted ──► one copy, shared ──► a line per puller (≤ puller_bytes_max) ──► gRPC message or HTTP line
//!                                     └ full: that puller is ended, and nobody waits for it
//! ```

use super::push::Problem;
use crate::frame::{Publication, Target};
use crate::topics::Refusal;
use bytes::Bytes;
use futures_util::Stream;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::Code;

/// What a push costs its line besides its bytes.
const OVERHEAD_BYTES: usize = 128;

/// One accepted push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pulled {
    /// Whose, or empty.
    pub uid: Arc<str>,
    /// Which topic, or empty.
    pub topic: Arc<str>,
    /// The payload.
    pub data: Bytes,
}

impl Pulled {
    fn of(publication: &Publication) -> Pulled {
        let (uid, topic) = match &publication.target {
            Target::Everyone => ("".into(), "".into()),
            Target::Topic(topic) => ("".into(), topic.clone()),
            Target::User { uid, topic } => (uid.clone(), topic.clone()),
        };
        Pulled { uid, topic, data: publication.data.clone() }
    }

    fn bytes(&self) -> usize {
        self.uid.len() + self.topic.len() + self.data.len() + OVERHEAD_BYTES
    }
}

/// What both ends of a line know.
#[derive(Default)]
struct Shared {
    bytes: AtomicUsize,
    is_late: AtomicBool,
}

struct Puller {
    line: UnboundedSender<Pulled>,
    bytes_max: usize,
    shared: Arc<Shared>,
}

/// Everyone who pulls.
#[derive(Default)]
pub(super) struct Pullers(Vec<Puller>);

impl Pullers {
    /// One more, who may be `bytes_max` behind.
    ///
    /// # Errors
    /// There are `pullers_max`.
    pub(super) fn add(
        &mut self,
        pullers_max: usize,
        bytes_max: usize,
        draining: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Pull, Problem> {
        self.forget_gone();
        if self.0.len() >= pullers_max {
            let text =
                format!("{pullers_max} streams of PullData are open (publish.pullers_max): end one, or raise it");
            return Err(Problem::new(Code::ResourceExhausted, text));
        }
        let (line, pushes) = unbounded_channel();
        let shared = Arc::new(Shared::default());
        self.0.push(Puller { line, bytes_max, shared: shared.clone() });
        Ok(Pull { pushes, shared, bytes_max, draining: Box::pin(draining), is_over: false })
    }

    /// Gives everyone an accepted push, whose payload pins nothing else; returns how many were ended because they are too far behind.
    pub(super) fn give(&mut self, publication: &Publication) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let push = Pulled::of(publication);
        let (before, bytes) = (self.0.len(), push.bytes());
        let mut gone = 0;
        self.0.retain(|puller| {
            // Only this end adds, so that what fits now fits.
            if puller.shared.bytes.load(Ordering::Relaxed) + bytes > puller.bytes_max {
                puller.shared.is_late.store(true, Ordering::Relaxed);
                return false;
            }
            puller.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
            let is_there = puller.line.send(push.clone()).is_ok();
            gone += usize::from(!is_there);
            is_there
        });
        before - self.0.len() - gone
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Lets go of those who have left.
    pub(super) fn forget_gone(&mut self) {
        self.0.retain(|puller| !puller.line.is_closed());
    }
}

/// The pushes of one puller, in the order of acceptance. Ends with why it ends.
pub(super) struct Pull {
    pushes: UnboundedReceiver<Pulled>,
    shared: Arc<Shared>,
    bytes_max: usize,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_over: bool,
}

impl Stream for Pull {
    type Item = Result<Pulled, Problem>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(Some(push)) = self.pushes.poll_recv(cx)
            && !self.shared.is_late.load(Ordering::Relaxed)
        {
            self.shared.bytes.fetch_sub(push.bytes(), Ordering::Relaxed);
            return Poll::Ready(Some(Ok(push)));
        }
        let problem = if self.shared.is_late.load(Ordering::Relaxed) {
            let bytes_max = self.bytes_max;
            let text = format!(
                "you were {bytes_max} bytes behind (publish.puller_bytes_max) and have missed pushes: read faster, and pull again"
            );
            Problem::new(Code::ResourceExhausted, text)
        } else {
            ready!(self.draining.as_mut().poll(cx));
            Refusal::Draining.into()
        };
        self.is_over = true;
        Poll::Ready(Some(Err(problem)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};

    fn pushed(pullers: &mut Pullers, data: &str) -> usize {
        let publication = Publication { target: Target::user_or_topic("u", "t"), data: data.to_owned().into() };
        pullers.give(&publication)
    }

    #[test]
    fn a_puller_gets_all_in_order_and_one_that_is_too_far_behind_is_ended_alone() {
        let mut pullers = Pullers::default();
        assert_eq!(pushed(&mut pullers, "nobody pulls"), 0);
        let mut add = |bytes_max| pullers.add(2, bytes_max, std::future::pending()).ok();
        let (mut quick, mut slow, none) = (add(1000).unwrap(), add(300).unwrap(), add(1000));
        assert!(none.is_none());
        let next = |pull: &mut Pull| pull.next().now_or_never();
        for n in ["1", "2", "3"] {
            let ended = pushed(&mut pullers, n);
            assert_eq!(ended, usize::from(n == "3"), "{n}");
            let push = next(&mut quick).unwrap().unwrap().unwrap();
            assert_eq!((&*push.uid, &*push.topic, &push.data[..]), ("u", "t", n.as_bytes()));
        }
        assert_eq!(next(&mut slow).unwrap().unwrap().unwrap_err().code, Code::ResourceExhausted);
        assert!(next(&mut slow).unwrap().is_none());
        assert!(next(&mut quick).is_none(), "it waits for more");
        drop(quick);
        pullers.forget_gone();
        assert_eq!(pullers.len(), 0);
    }

    #[test]
    fn a_drain_ends_a_pull_behind_what_was_accepted() {
        let mut pullers = Pullers::default();
        let mut pull = pullers.add(1, 1000, std::future::ready(())).ok().unwrap();
        pushed(&mut pullers, "last");
        assert!(pull.next().now_or_never().unwrap().unwrap().is_ok());
        assert_eq!(pull.next().now_or_never().unwrap().unwrap().unwrap_err().code, Code::Unavailable);
    }
}
