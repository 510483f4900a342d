//! What a shard collects in a tick, and what one subscriber is owed of it, against a model: a list of messages. With frames of
//! one message, and with frames that join several, compressed or not.

use fanwire::clock::Time;
use fanwire::dialect::DialectId;
use fanwire::frame::{Outgoing, Piece};
use fanwire::ids::{Epoch, Generation, InterestId, InterestRef, Offset, Slot};
use fanwire::queue::InterestKey;
use fanwire::shard::egress::{Egress, Spares};
use fanwire::shard::interests::{Interests, Joined, Sealed, Waiter};
use fanwire::shard::pool::Pool;
use fanwire::websocket::deflate::store;
use fanwire::websocket::frame::{FrameHeader, Opcode, write_frame};
use fanwire::websocket::{Deflater, Inflater};
use proptest::prelude::*;

/// How the messages of a run are framed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Single,
    Joined,
    JoinedDeflated,
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Single), Just(Form::Joined), Just(Form::JoinedDeflated)]
}

/// Lengths around the bounds of headers and joined frames.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 8..200usize, 2 => 200..9000usize, 1 => 16_300..16_500usize, 1 => 65_500..65_600usize]
}

/// What happens to an interest between two ticks.
#[derive(Clone, Debug)]
enum Event {
    Message(usize),
    Join,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![5 => lengths().prop_map(Event::Message), 1 => Just(Event::Join)];
    prop::collection::vec(event, 1..60)
}

/// The n-th message: its number, then a letter repeated.
fn text(n: u64, length: usize) -> Vec<u8> {
    let mut text = format!("{n}:").into_bytes();
    text.resize(length.max(text.len()), b'a' + (n % 26) as u8);
    text
}

/// As the encoder makes it.
fn encoded(form: Form, text: &[u8], deflater: &mut Deflater) -> Vec<u8> {
    let mut out = Vec::new();
    match form {
        Form::Single => write_frame(&mut out, Opcode::Text, text),
        Form::Joined => out.extend_from_slice(text),
        Form::JoinedDeflated if text.len().is_multiple_of(2) => store(text, &mut out),
        Form::JoinedDeflated => deflater.deflate(text, &mut out),
    }
    out
}

/// An interest with one member, slot 0, and its reference.
fn interest(form: Form, interests: &mut Interests) -> (InterestId, InterestRef) {
    let encoding = match form {
        Form::Single => DialectId::Gpush.encoding(false),
        Form::Joined => DialectId::Centrifugo.encoding(false),
        Form::JoinedDeflated => DialectId::Centrifugo.encoding(true),
    };
    let id = interests.find_or_add(InterestKey::Topic("t".into(), encoding));
    interests.settle_announcements();
    let (interest, _) = interests.announcement().expect("a new interest is announced");
    interests.announced();
    interests.acknowledged(interest, Epoch(1), Offset(0), false, &mut Vec::new());
    join(interests, id, 0);
    (id, interest)
}

fn join(interests: &mut Interests, id: InterestId, slot: u32) -> u64 {
    let waiter = Waiter { slot: Slot(slot), generation: Generation(0), request: 0 };
    match interests.join(id, waiter) {
        Joined::From(_, from) => from.0,
        Joined::Waiting => unreachable!("it is acknowledged"),
    }
}

/// The piece of `sealed` that is a member's who joined at `from`.
fn piece(sealed: &Sealed, from: u64) -> Piece {
    let batch = sealed.batch.clone();
    let start = batch.start_after(batch.marks().partition_point(|m| m.offset.0 <= from));
    Piece { start, end: batch.len(), batch }
}

/// What a client reads: numbers of messages, and `None` for a reply. Stops at a frame that is not whole, and gives what is left.
fn read<'a>(form: Form, mut bytes: &'a [u8], lengths: &[usize]) -> (Vec<Option<u64>>, &'a [u8]) {
    let (mut seen, mut inflater) = (Vec::new(), Inflater::new());
    while let Some(header) = FrameHeader::parse(bytes).expect("no frame is cut") {
        let end = header.header_len + header.payload_len as usize;
        let Some(payload) = bytes.get(header.header_len..end) else { break };
        bytes = &bytes[end..];
        assert!(header.fin && !header.masked, "{header:?}");
        if header.opcode == Opcode::Pong {
            seen.push(None);
            continue;
        }
        assert_eq!((header.opcode, header.rsv1), (Opcode::Text, form == Form::JoinedDeflated));
        let mut plain = Vec::new();
        if header.rsv1 {
            inflater.inflate(payload, &mut plain, 1 << 24).expect("deflate");
        } else {
            plain.extend_from_slice(payload);
        }
        for line in plain.split(|b| *b == b'\n') {
            let digits = line.iter().take_while(|b| b.is_ascii_digit()).count();
            let n: u64 = std::str::from_utf8(&line[..digits]).unwrap().parse().expect("a message's number");
            assert!(line == text(n, lengths[n as usize - 1]), "message {n} came otherwise");
            seen.push(Some(n));
        }
    }
    (seen, bytes)
}

fn bytes(outgoing: &Outgoing) -> Vec<u8> {
    match outgoing {
        Outgoing::Shared(piece) => piece.bytes().to_vec(),
        Outgoing::Pieces(pieces) => pieces.iter().flat_map(|p| p.bytes().to_vec()).collect(),
        Outgoing::Private(bytes) => bytes.clone(),
        Outgoing::Page(page) => page.to_vec(),
    }
}

fn release(outgoing: Outgoing, pool: &mut Pool) {
    match outgoing {
        Outgoing::Shared(piece) => pool.release(piece.batch),
        Outgoing::Pieces(pieces) => pieces.into_iter().for_each(|p| pool.release(p.batch)),
        Outgoing::Private(_) | Outgoing::Page(_) => {}
    }
}

/// What happens to one subscriber's egress.
#[derive(Clone, Debug)]
enum Step {
    Tick(Vec<usize>),
    Reply,
    Send(usize),
    Drop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(lengths(), 1..12).prop_map(Step::Tick),
        2 => Just(Step::Reply),
        5 => prop_oneof![1..50usize, 50..5000usize, 5000..100_000usize].prop_map(Step::Send),
        1 => Just(Step::Drop),
    ];
    prop::collection::vec(step, 1..50)
}

proptest! {
    #[test]
    fn whoever_joins_when_reads_what_came_after_in_order_in_whole_frames(
        form in forms(),
        events in events(),
        send_bytes_max in prop_oneof![1..500usize, Just(1 << 20)],
    ) {
        let (mut interests, mut pool, mut deflater) = (Interests::new(send_bytes_max), Pool::default(), Deflater::new(1));
        let (id, reference) = interest(form, &mut interests);
        let (mut lengths, mut members) = (Vec::new(), vec![0]);
        for event in events {
            match event {
                Event::Message(length) => {
                    let n = lengths.len() as u64 + 1;
                    let frame = encoded(form, &text(n, length), &mut deflater);
                    lengths.push(length);
                    interests.frame(reference, Offset(n), Offset(n - 1), &frame, Time(0), &mut pool);
                }
                Event::Join => members.push(join(&mut interests, id, members.len() as u32)),
            }
        }
        let last = lengths.len() as u64;
        for (slot, from) in members.iter().enumerate() {
            prop_assert_eq!(interests.collected(id, Slot(slot as u32)) as u64, last - from);
        }
        let mut sealed = Vec::new();
        interests.seal(&mut pool, &mut sealed, |_, _| {});
        prop_assert_eq!(interests.batch_bytes(), 0);
        for batch in &sealed {
            for from in &members {
                let piece = piece(batch, *from);
                let (seen, rest) = read(form, piece.bytes(), &lengths);
                prop_assert!(rest.is_empty());
                prop_assert_eq!(seen, (from + 1..=last).map(Some).collect::<Vec<_>>());
                prop_assert_eq!(piece.messages() as u64, last - from);
            }
        }
    }

    #[test]
    fn egress_acts_as_its_model(form in forms(), steps in steps(), bound in 1..200_000usize) {
        let (mut interests, mut pool, mut deflater) = (Interests::new(1 << 20), Pool::default(), Deflater::new(1));
        let (mut spares, mut egress) = (Spares::default(), Egress::default());
        let (_, reference) = interest(form, &mut interests);
        let (mut lengths, mut stream) = (Vec::new(), Vec::new());
        let (mut offered, mut delivered, mut dropped, mut replies) = (0, 0, 0, 0);
        for step in steps.into_iter().chain((0..100).map(|_| Step::Send(1 << 20))) {
            match step {
                Step::Tick(tick) => {
                    for length in tick {
                        let n = lengths.len() as u64 + 1;
                        let frame = encoded(form, &text(n, length), &mut deflater);
                        lengths.push(length);
                        interests.frame(reference, Offset(n), Offset(n - 1), &frame, Time(0), &mut pool);
                    }
                    let mut sealed = Vec::new();
                    interests.seal(&mut pool, &mut sealed, |_, _| {});
                    let piece = piece(&sealed[0], 0);
                    offered += piece.messages();
                    if let Err(piece) = egress.push(piece, bound, &mut spares) {
                        let (messages, before) = (piece.messages(), egress.push_bytes());
                        let lost = egress.push_what_fits(piece, bound, &mut spares, &mut pool);
                        prop_assert!(egress.push_bytes() <= bound && lost > 0 && lost <= messages);
                        prop_assert_eq!(lost == messages, egress.push_bytes() == before);
                        dropped += lost;
                    }
                    sealed.into_iter().for_each(|sealed| pool.release(sealed.batch));
                }
                Step::Reply => {
                    let mut pong = Vec::new();
                    write_frame(&mut pong, Opcode::Pong, b"reply");
                    egress.reply(&pong, &mut spares);
                    replies += 1;
                }
                Step::Send(send_bytes_max) => {
                    let next = egress.next_send(send_bytes_max, &mut spares, &mut pool);
                    let Some((outgoing, messages)) = next else { continue };
                    stream.extend(bytes(&outgoing));
                    release(outgoing, &mut pool);
                    delivered += messages;
                    let (_, rest) = read(form, &stream, &lengths);
                    prop_assert_eq!(egress.is_mid_frame(), !rest.is_empty());
                }
                Step::Drop => {
                    let mid_frame = egress.is_mid_frame();
                    dropped += egress.drop_pushes(&mut spares, &mut pool);
                    if mid_frame {
                        break; // Its connection is cut.
                    }
                }
            }
            // What counts as delivered is what has come whole.
            let (seen, _) = read(form, &stream, &lengths);
            prop_assert_eq!(seen.iter().flatten().count(), delivered);
        }
        if egress.is_empty() {
            prop_assert_eq!(delivered + dropped, offered);
            prop_assert_eq!(pool.out(), 0);
        }
        let (seen, _) = read(form, &stream, &lengths);
        let numbers: Vec<u64> = seen.iter().flatten().copied().collect();
        prop_assert!(numbers.is_sorted_by(|a, b| a < b), "{:?}", numbers);
        prop_assert!(seen.len() - numbers.len() <= replies);
    }
}
