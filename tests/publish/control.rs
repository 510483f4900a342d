use crate::fake::PANIC;
use crate::harness::{Options, control, eventually, in_runtime};
use fanwire::frame::Publication;
use fanwire::ids::{ClientRef, Encoding, Generation, InterestId, InterestRef, Offset, ShardId, Slot, UserKey};
use fanwire::ingest::{Admission, Oracle, StallError};
use fanwire::queue::{Answer, Drain, FromShard, InterestKey, Page, Question, ToShard};
use fanwire::topics::Refusal;
use futures_util::future::BoxFuture;

const DRAIN: Drain = Drain { close_code: 1001, window_ms: 0, rate_per_s: 1000, deadline_ms: 1000 };

fn publication(data: &str) -> Publication {
    Publication::new("t", data.to_owned())
}

/// A task that runs the driver.
macro_rules! drive {
    ($control:expr) => {{
        let control = $control.clone();
        tokio::spawn(async move { control.run(std::sync::Arc::new(crate::fake::Nobody)).await })
    }};
}

#[test]
fn a_batch_with_room_is_admitted_at_once_in_order_and_each_bell_rings_once() {
    let (control, mut shards, _) = control(&Options::default());
    shards.iter().for_each(|s| s.bell.sleep());
    let mut offsets = Vec::new();
    control.try_publish_all(["a", "b", "c"].map(publication), |admission| match admission {
        Admission::Done(Ok(ack)) => offsets.push(ack.offset),
        other => panic!("{other:?}"),
    });
    assert_eq!(offsets, [Offset(1), Offset(2), Offset(3)]);
    for shard in &mut shards {
        assert_eq!(shard.frames(), ["a", "b", "c"]);
        assert_eq!(shard.bell.rings(), 1);
    }
    let m = control.metrics();
    assert_eq!((m.publications.get(), m.publication_bytes.get(), m.waited.get()), (3, 3, 0));
}

#[test]
fn a_publication_without_room_waits_until_there_is_some_in_every_shard() {
    in_runtime(async {
        let (control, mut shards, _) =
            control(&Options { queue_items_max: 1, publish_wait_ms: 10_000, ..Options::default() });
        drive!(control);
        control.publish(publication("a")).await.unwrap();
        let Admission::Waiting(b) = control.try_publish(publication("b")) else { panic!("there is no room") };
        let Admission::Waiting(c) = control.try_publish(publication("c")) else { panic!("there is no room") };
        drop(c); // Its publisher left; it goes its way all the same.
        assert_eq!((control.metrics().waited.get(), control.metrics().waiting.get()), (2, 2));

        assert_eq!(shards[0].frames(), ["a"]);
        assert_eq!(shards[1].frames(), ["a"]);
        assert_eq!(b.await.unwrap().offset, Offset(2));
        assert_eq!(shards[0].frames(), ["b"]);
        assert_eq!(shards[1].frames(), ["b"]);
        assert_eq!(eventually(|| shards[0].frames().pop()).await, "c");
        assert_eq!(shards[1].frames(), ["c"]);
        let m = control.metrics();
        assert_eq!((m.publications.get(), m.publication_bytes.get(), m.waiting.get()), (3, 3, 0));
    });
}

#[test]
fn a_publication_that_waits_too_long_is_refused_and_nobody_has_it() {
    in_runtime(async {
        let (control, mut shards, _) = control(&Options { queue_items_max: 1, ..Options::default() });
        drive!(control);
        control.publish(publication("a")).await.unwrap();
        shards[1].frames(); // Room in one shard is not enough.
        let refusal = control.publish(publication("b")).await.unwrap_err();
        assert_eq!(refusal, Refusal::NoRoom { shard: ShardId(0), waited_ms: 30 });
        assert_eq!(shards[0].frames(), ["a"]);
        assert!(shards[1].frames().is_empty());
        assert_eq!(control.metrics().refused_full.get(), 1);
    });
}

#[test]
fn a_shard_that_rings_wakes_the_sleeping_driver() {
    in_runtime(async {
        let (control, mut shards, bell) = control(&Options::default());
        drive!(control);
        // Were the bell not heard, each round would take the driver's longest sleep, a second, and the test too long.
        for round in 0..40 {
            eventually(|| bell.is_sleeping().then_some(())).await;
            let interest = InterestRef { id: InterestId(round), generation: 1 };
            let key = InterestKey::Topic("t".into(), Encoding(0));
            let shard = &mut shards[round as usize % 2];
            shard.outbox.push(FromShard::Subscribe { interest, key }, 0).unwrap();
            shard.outbox.ring();
            let answer = eventually(|| shard.inbox.pop()).await;
            assert!(matches!(answer, ToShard::Subscribed { interest: i, .. } if i == interest), "{answer:?}");
        }
        assert_eq!(bell.rings(), 40);
    });
}

/// Knows whoever says a name, makes a mistake on request, and waits until told otherwise.
struct Knows(std::sync::Arc<tokio::sync::Semaphore>);

impl Oracle for Knows {
    fn login(&self, token: Box<str>) -> BoxFuture<'static, Option<Box<str>>> {
        let gate = self.0.clone();
        Box::pin(async move {
            assert_ne!(&*token, PANIC, "asked for");
            if &*token == "late" {
                drop(gate.acquire().await);
            }
            Some(token)
        })
    }

    fn page(&self, page: Page) -> BoxFuture<'static, Answer> {
        assert_eq!(page, Page::Stats);
        Box::pin(async { Answer::Page { status: 200, content_type: "text/plain", body: "stats".into() } })
    }
}

#[test]
fn each_question_is_answered_to_who_asked_when_it_is_known_and_a_panic_is_a_refusal() {
    in_runtime(async {
        let (control, mut shards, _) = control(&Options::default());
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let oracle = std::sync::Arc::new(Knows(gate.clone()));
        let driver = control.clone();
        tokio::spawn(async move { driver.run(oracle).await });
        let client = |slot| ClientRef { slot: Slot(slot), generation: Generation(7) };
        let login = |token: &str| Question::Login { token: token.into(), encoding: Encoding(0) };
        let questions = [login("late"), login(PANIC), Question::Page(Page::Stats), login("bob")];
        for (slot, question) in questions.into_iter().enumerate() {
            shards[1].outbox.push(FromShard::Ask { client: client(slot as u32), question }, 0).unwrap();
        }
        shards[1].outbox.ring();
        let mut answers = Vec::new();
        while answers.len() < 4 {
            let message = eventually(|| shards[1].inbox.pop()).await;
            let ToShard::Answer { client, answer } = message else { panic!("{message:?}") };
            assert_eq!(client.generation, Generation(7));
            answers.push((client.slot.0, *answer));
            if answers.len() == 3 {
                assert!(shards[1].inbox.is_empty());
                gate.close(); // Now the late one is known.
            }
        }
        let is = |uid: &str| Answer::LoggedIn { uid: uid.into(), user: UserKey(0) };
        assert_eq!(answers.pop(), Some((0, is("late"))));
        answers.sort_by_key(|(slot, _)| *slot);
        let page = Answer::Page { status: 200, content_type: "text/plain", body: "stats".into() };
        assert_eq!(answers, [(1, Answer::LoginRefused), (2, page), (3, is("bob"))]);
        assert_eq!(control.metrics().handler_panics.get(), 1);
        assert!(shards[0].inbox.is_empty());
    });
}

#[test]
fn a_withdrawn_question_is_given_up_and_answered_at_once_and_one_that_was_answered_not_again() {
    in_runtime(async {
        let (control, mut shards, _) = control(&Options::default());
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let oracle = std::sync::Arc::new(Knows(gate.clone()));
        let driver = control.clone();
        tokio::spawn(async move { driver.run(oracle).await });
        let client = |slot| ClientRef { slot: Slot(slot), generation: Generation(7) };
        let login = |token: &str| Question::Login { token: token.into(), encoding: Encoding(0) };
        let shard = &mut shards[1];
        let said = |message: ToShard| match message {
            ToShard::Answer { client, answer } => (client.slot.0, *answer),
            other => panic!("{other:?}"),
        };
        shard.outbox.push(FromShard::Ask { client: client(0), question: login("late") }, 0).unwrap();
        shard.outbox.push(FromShard::Ask { client: client(1), question: login("bob") }, 0).unwrap();
        shard.outbox.ring();
        let is = |uid: &str| Answer::LoggedIn { uid: uid.into(), user: UserKey(0) };
        assert_eq!(said(eventually(|| shard.inbox.pop()).await), (1, is("bob")));
        let waits = std::sync::Arc::strong_count(&gate);
        for slot in [1, 0] {
            shard.outbox.push(FromShard::Withdraw { client: client(slot) }, 0).unwrap();
        }
        shard.outbox.ring();
        assert_eq!(said(eventually(|| shard.inbox.pop()).await), (0, Answer::LoginRefused));
        eventually(|| (std::sync::Arc::strong_count(&gate) < waits).then_some(())).await;
        gate.close();
        // Asked and withdrawn in one breath: one answer all the same, and none of those before has a second.
        shard.outbox.push(FromShard::Ask { client: client(2), question: login("late") }, 0).unwrap();
        shard.outbox.push(FromShard::Withdraw { client: client(2) }, 0).unwrap();
        shard.outbox.push(FromShard::Ask { client: client(3), question: login("eve") }, 0).unwrap();
        shard.outbox.ring();
        assert_eq!(said(eventually(|| shard.inbox.pop()).await), (2, Answer::LoginRefused));
        assert_eq!(said(eventually(|| shard.inbox.pop()).await), (3, is("eve")));
        assert!(shard.inbox.is_empty());
    });
}

#[test]
fn answers_come_while_the_driver_always_has_more_to_do() {
    in_runtime(async {
        let (control, mut shards, _) = control(&Options { busy: true, ..Options::default() });
        drive!(control);
        for slot in 0..300 {
            let client = ClientRef { slot: Slot(slot), generation: Generation(1) };
            shards[0].outbox.push(FromShard::Ask { client, question: Question::Page(Page::Stats) }, 0).unwrap();
        }
        for _ in 0..300 {
            let message = eventually(|| shards[0].inbox.pop()).await;
            assert!(matches!(message, ToShard::Answer { .. }), "{message:?}");
        }
    });
}

#[test]
fn a_drain_refuses_what_comes_and_what_waits() {
    in_runtime(async {
        let (control, _shards, _) =
            control(&Options { queue_items_max: 1, publish_wait_ms: 10_000, ..Options::default() });
        drive!(control);
        control.publish(publication("a")).await.unwrap();
        let Admission::Waiting(b) = control.try_publish(publication("b")) else { panic!("there is no room") };
        assert!(!control.is_draining());
        control.drain();
        assert!(control.is_draining());
        control.drain_begun().await;
        assert_eq!(control.publish(publication("c")).await, Err(Refusal::Draining));
        assert_eq!(b.await, Err(Refusal::Draining));
        assert_eq!(control.metrics().refused_draining.get(), 2);
    });
}

#[test]
fn the_order_to_drain_waits_for_room_and_for_every_shard() {
    in_runtime(async {
        let (control, mut shards, _) = control(&Options { queue_items_max: 1, ..Options::default() });
        drive!(control);
        control.publish(publication("a")).await.unwrap();
        let drained = tokio::spawn({
            let control = control.clone();
            async move { control.drain_shards(DRAIN).await }
        });
        for (i, shard) in shards.iter_mut().enumerate() {
            assert_eq!(shard.frames(), ["a"], "frames are flushed before the order");
            let order = eventually(|| shard.inbox.pop()).await;
            assert!(matches!(order, ToShard::Drain(Drain { close_code: 1001, .. })), "{order:?}");
            assert!(!drained.is_finished(), "shard {i} is not drained yet");
            shard.outbox.push(FromShard::Drained, 0).unwrap();
            shard.outbox.ring();
        }
        drained.await.unwrap();
        control.drain_shards(DRAIN).await; // They are.
        assert!(shards.iter_mut().all(|s| s.inbox.pop().is_none()), "one order each");
    });
}

#[test]
fn a_stall_is_refused_for_a_shard_that_is_not_there_or_full() {
    let (control, mut shards, _) = control(&Options { queue_items_max: 1, ..Options::default() });
    control.stall(ShardId(1), 50).unwrap();
    assert!(matches!(shards[1].inbox.pop(), Some(ToShard::Stall { duration_ms: 50 })));
    control.stall(ShardId(1), 50).unwrap();
    assert_eq!(control.stall(ShardId(1), 50), Err(StallError::NoRoom { shard: ShardId(1) }));
    assert_eq!(control.stall(ShardId(2), 50), Err(StallError::NoSuchShard { shard: ShardId(2), shards: 2 }));
    assert_eq!(control.queue_depths(), [(0, 0), (1, 0)]);
}
