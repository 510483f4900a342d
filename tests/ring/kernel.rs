//! The ring alone: what is submitted, what comes back, and what the kernel has let go of then.

use crate::on_both_kernels;
use crate::rig::{Bare, PATIENCE, SEND_BUFFER_BYTES, reset};
use fanwire::clock::Time;
use fanwire::frame::{Batch, Outgoing, Piece};
use fanwire::ids::{Generation, Offset, Slot};
use fanwire::socket::uring::Features;
use fanwire::socket::{Kind, Ring, Token};
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Instant;

/// More than the kernel takes for a client that does not read.
const MUCH: usize = 16 << 20;

fn name(kind: Kind, slot: Slot) -> Token {
    Token::new(kind, Generation(5), slot)
}

fn patterned(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn a_close_under_an_armed_poll_reaches_the_peer_and_frees_the_slot(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, mut client) = bare.take();
    bare.ring.poll_readable(name(Kind::Poll, slot));
    bare.ring.enter(None);
    bare.ring.close(name(Kind::Close, slot), Some(name(Kind::Poll, slot)));
    let all = bare.all(4);
    assert_eq!((all[&Kind::Poll].result, all[&Kind::Poll].more), (-libc::ECANCELED, false));
    assert!([Kind::Cancel, Kind::Shutdown, Kind::Close].iter().all(|kind| all[kind].result == 0), "{all:?}");
    assert!(all.values().all(|c| c.token.generation() == Generation(5) && c.token.slot() == slot));
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    let (again, _client) = bare.take();
    assert_eq!(again, slot, "the kernel gives away the slot that was freed last");
}

fn a_close_is_whole_although_its_poll_has_ended_and_its_peer_is_gone(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, client) = bare.take();
    reset(client);
    // Nothing is armed under this name, and there is nothing left to shut down: each link fails, and the next is tried.
    bare.ring.close(name(Kind::Close, slot), Some(name(Kind::Poll, slot)));
    let all = bare.all(3);
    assert_eq!(all[&Kind::Cancel].result, -libc::ENOENT);
    assert_eq!(all[&Kind::Close].result, 0);
    assert_eq!(bare.take().0, slot);
}

fn a_close_is_whole_with_a_submission_queue_that_is_almost_full(features: Features) {
    for filled in 1020..=1024 {
        let mut bare = Bare::new(64, features);
        let (slot, mut client) = bare.take();
        let (other, _other) = bare.take();
        for _ in 0..filled {
            bare.ring.recv(name(Kind::Recv, other));
        }
        bare.ring.close(name(Kind::Close, slot), None);
        let mut closes = 0;
        for _ in 0..filled + 2 {
            let completion = bare.next();
            match completion.token.kind() {
                Kind::Recv => assert_eq!(completion.result, -libc::EAGAIN),
                kind => {
                    assert_eq!((completion.result, completion.token.slot()), (0, slot), "{kind:?}");
                    closes += 1;
                }
            }
        }
        assert_eq!(closes, 2);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    }
}

fn a_send_that_waits_ends_short_when_its_peer_resets_and_brings_its_bytes_back(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, mut client) = bare.take();
    let bytes = patterned(MUCH);
    bare.ring.send(name(Kind::Send, slot), Outgoing::Private(bytes.clone()));
    bare.ring.enter(None);
    assert!(bare.ring.completion().is_none(), "it waits for its peer");
    let mut some = vec![0; 100_000];
    client.read_exact(&mut some).unwrap();
    assert!(some == bytes[..some.len()]);
    reset(client);
    let completion = bare.next();
    assert!(completion.result < bytes.len() as i32, "{}", completion.result);
    let Some(Outgoing::Private(returned)) = completion.returned else { panic!("{:?}", completion.returned) };
    assert!(returned == bytes);
}

fn a_close_ends_a_send_that_waits(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, mut client) = bare.take();
    bare.ring.poll_readable(name(Kind::Poll, slot));
    bare.ring.send(name(Kind::Send, slot), Outgoing::Private(patterned(MUCH)));
    bare.ring.enter(None);
    bare.ring.close(name(Kind::Close, slot), Some(name(Kind::Poll, slot)));
    let all = bare.all(5);
    let sent = all[&Kind::Send].result;
    assert!(sent > 0 && sent < MUCH as i32, "{sent}");
    assert_eq!(all[&Kind::Send].returned.as_ref().map(Outgoing::len), Some(MUCH));
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == patterned(MUCH)[..sent as usize], "what was sent arrives, and then the end");
}

fn a_second_send_while_one_waits_is_our_mistake(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, _client) = bare.take();
    bare.ring.send(name(Kind::Send, slot), Outgoing::Private(patterned(MUCH)));
    bare.ring.enter(None);
    let second = catch_unwind(AssertUnwindSafe(|| {
        bare.ring.send(name(Kind::Send, slot), Outgoing::Private(vec![1]));
    }));
    let message = *second.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("a second send while one is in flight"), "{message}");
}

/// Each client reads only once the send waits in the middle of a piece.
fn pieces_arrive_as_one_stream_however_often_the_send_waits(features: Features) {
    let mut bare = Bare::new(64, features);
    let batches: Vec<Rc<Batch>> = (1..=3)
        .map(|i| {
            let mut batch = Batch::default();
            (0..3).for_each(|n| batch.push(&patterned(40_000 * i + n), Offset(n as u64 + 1)));
            Rc::new(batch)
        })
        .collect();
    for count in [2, 7, Outgoing::PIECES_MAX] {
        let (slot, mut client) = bare.take();
        let pieces: Vec<Piece> = (0..count)
            .map(|i| {
                let batch = batches[i % batches.len()].clone();
                let (start, end) = (i as u32 * 1000, batch.len() - i as u32);
                Piece { batch, start, end }
            })
            .collect();
        let expected: Vec<u8> = pieces.iter().flat_map(|p| p.bytes().to_vec()).collect();
        assert!(expected.len() > 4 * SEND_BUFFER_BYTES);
        // Twice in one slot: the vectors of the first are used again.
        for _ in 0..2 {
            bare.ring.send(name(Kind::Send, slot), Outgoing::Pieces(pieces.clone()));
            bare.ring.enter(None);
            let reader = std::thread::spawn({
                let mut got = vec![0; expected.len()];
                let mut client = client.try_clone().unwrap();
                move || client.read_exact(&mut got).map(|()| got)
            });
            let completion = bare.next();
            assert_eq!(completion.result as usize, expected.len());
            assert!(reader.join().unwrap().unwrap() == expected);
            assert!(matches!(completion.returned, Some(Outgoing::Pieces(back)) if back.len() == count));
        }
        client.set_nonblocking(true).unwrap();
        assert!(client.read(&mut [0]).is_err(), "not a byte more");
    }
    drop(bare);
    assert!(batches.iter().all(|b| Rc::strong_count(b) == 1), "every share came back");
}

/// 64 slots have 16 buffers.
fn each_receive_that_found_no_buffer_says_so_and_finds_one_later(features: Features) {
    const CLIENTS: usize = 50;
    let mut bare = Bare::new(64, features);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| bare.take()).collect();
    for (i, (slot, client)) in clients.iter_mut().enumerate() {
        client.write_all(&[i as u8; 100]).unwrap();
        bare.ring.poll_readable(name(Kind::Poll, *slot));
    }
    for _ in 0..CLIENTS {
        let completion = bare.next();
        assert_eq!((completion.token.kind(), completion.more), (Kind::Poll, true));
    }
    let mut waiting: Vec<Slot> = clients.iter().map(|(slot, _)| *slot).collect();
    let mut rounds = 0;
    while !waiting.is_empty() {
        waiting.iter().for_each(|slot| bare.ring.recv(name(Kind::Recv, *slot)));
        let mut starved = Vec::new();
        let mut held = Vec::new();
        for _ in 0..waiting.len() {
            let completion = bare.next();
            let slot = completion.token.slot();
            match (completion.result, completion.buffer) {
                (100, Some(buffer)) => {
                    let i = clients.iter().position(|(s, _)| *s == slot).unwrap();
                    assert_eq!(bare.ring.received(&buffer, 100), [i as u8; 100]);
                    held.push(buffer);
                }
                (result, None) => {
                    assert_eq!(result, -libc::ENOBUFS);
                    starved.push(slot);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(held.len(), 16.min(waiting.len()), "as many as there are buffers");
        held.into_iter().for_each(|buffer| bare.ring.give_back(buffer));
        waiting = starved;
        rounds += 1;
    }
    assert_eq!(rounds, 4);
}

fn what_a_peer_said_before_it_left_is_read_before_its_end(features: Features) {
    let mut bare = Bare::new(64, features);
    let (slot, mut client) = bare.take();
    bare.ring.poll_readable(name(Kind::Poll, slot));
    bare.ring.recv(name(Kind::Recv, slot));
    let completion = bare.next();
    assert_eq!((completion.token.kind(), completion.result), (Kind::Recv, -libc::EAGAIN));
    if let Some(buffer) = completion.buffer {
        bare.ring.give_back(buffer);
    }
    client.write_all(&patterned(5000)).unwrap();
    drop(client);
    assert_eq!(bare.next().token.kind(), Kind::Poll);
    let mut got = Vec::new();
    loop {
        bare.ring.recv(name(Kind::Recv, slot));
        let mut completion = bare.next();
        while completion.token.kind() == Kind::Poll {
            completion = bare.next();
        }
        let Some(buffer) = completion.buffer else {
            assert_eq!(completion.result, 0);
            break;
        };
        let more_was_there = completion.nonempty;
        got.extend_from_slice(bare.ring.received(&buffer, completion.result as usize));
        bare.ring.give_back(buffer);
        assert!(more_was_there || got.len() == 5000, "what is left is announced");
    }
    assert!(got == patterned(5000));
}

/// More clients than the submission queue has entries, so that a loop which submits for each completion enters on its way.
fn a_turn_ends_however_much_peers_send(features: Features) {
    const CLIENTS: usize = 1100;
    let mut bare = Bare::new(2048, features);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| bare.take()).collect();
    for (slot, client) in &mut clients {
        client.write_all(&[7; 12_000]).unwrap();
        bare.ring.recv(name(Kind::Recv, *slot));
    }
    let mut received = 0;
    let start = Instant::now();
    while received < CLIENTS * 12_000 {
        assert!(start.elapsed() < PATIENCE);
        bare.ring.enter(Some(Time::now().plus_ms(100)));
        let mut completions = 0;
        while let Some(completion) = bare.ring.completion() {
            completions += 1;
            assert!(completions <= CLIENTS, "what was asked for in this turn completes in it");
            if let Some(buffer) = completion.buffer {
                received += completion.result as usize;
                bare.ring.give_back(buffer);
            }
            // Asked again at once, whatever it said.
            bare.ring.recv(completion.token);
        }
    }
}

fn a_full_completion_queue_loses_nothing(features: Features) {
    const RECEIVES: usize = 10_000; // Its queue has 2048.
    let mut bare = Bare::new(64, features);
    let (slot, mut client) = bare.take();
    bare.ring.poll_readable(name(Kind::Poll, slot));
    for _ in 0..RECEIVES {
        bare.ring.recv(name(Kind::Recv, slot));
    }
    client.write_all(b"x").unwrap();
    let (mut receives, mut polls) = (0, 0);
    while receives < RECEIVES || polls == 0 {
        let completion = bare.next();
        match completion.token.kind() {
            Kind::Recv => receives += 1,
            Kind::Poll => {
                polls += 1;
                if !completion.more {
                    bare.ring.poll_readable(name(Kind::Poll, slot));
                }
            }
            kind => panic!("{kind:?}"),
        }
        if let Some(buffer) = completion.buffer {
            bare.ring.give_back(buffer);
        }
    }
    // What was full is as good as new.
    bare.ring.close(name(Kind::Close, slot), Some(name(Kind::Poll, slot)));
    while bare.next().token.kind() != Kind::Close {}
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

fn a_sleeping_ring_is_woken_by_its_bell_each_time(features: Features) {
    let mut bare = Bare::new(64, features);
    for round in 1..=50 {
        let bell = bare.bell.clone();
        bell.sleep();
        let ringer = std::thread::spawn(move || bell.ring());
        let start = Instant::now();
        while bare.bell.rings() < round {
            assert!(start.elapsed() < PATIENCE);
            bare.ring.enter(Some(Time::now().plus_ms(60_000)));
            assert!(bare.ring.completion().is_none(), "the bell is no completion");
        }
        assert!(start.elapsed() < PATIENCE, "woken by the bell, not by the deadline");
        ringer.join().unwrap();
        assert!(!bare.bell.is_sleeping());
    }
    assert_eq!(bare.bell.rings(), 50);
}

fn a_wait_ends_at_its_deadline_and_not_before(features: Features) {
    let mut bare = Bare::new(64, features);
    bare.ring.enter(None);
    for ms in [0, 1, 20, 100] {
        let deadline = Time::now().plus_ms(ms);
        bare.ring.enter(Some(deadline));
        assert!(Time::now() >= deadline && bare.ring.completion().is_none());
    }
}

on_both_kernels! {
    a_close_under_an_armed_poll_reaches_the_peer_and_frees_the_slot,
    a_close_is_whole_although_its_poll_has_ended_and_its_peer_is_gone,
    a_close_is_whole_with_a_submission_queue_that_is_almost_full,
    a_send_that_waits_ends_short_when_its_peer_resets_and_brings_its_bytes_back,
    a_close_ends_a_send_that_waits,
    a_second_send_while_one_waits_is_our_mistake,
    pieces_arrive_as_one_stream_however_often_the_send_waits,
    each_receive_that_found_no_buffer_says_so_and_finds_one_later,
    what_a_peer_said_before_it_left_is_read_before_its_end,
    a_turn_ends_however_much_peers_send,
    a_full_completion_queue_loses_nothing,
    a_sleeping_ring_is_woken_by_its_bell_each_time,
    a_wait_ends_at_its_deadline_and_not_before,
}
