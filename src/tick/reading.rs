//! What clients send: the handshake, frames, and the commands in them.

use super::Reactor;
use super::life::Cause;
use super::pages::Reading;
use crate::dialect::{Command, Dialect, Heartbeat, SubscribeError, TOPIC_BYTES_MAX, Welcome};
use crate::ids::{ConnectId, Epoch, InterestId, Offset, Slot};
use crate::queue::{InterestKey, Question};
use crate::shard::connection::Phase;
use crate::shard::interests::{Joined, Waiter};
use crate::shard::pages::Page;
use crate::socket::{BufferId, Defect, Kind, Ring, Token};
use crate::websocket::decoder::{DecoderLimits, Event};
use crate::websocket::deflate::Deflater;
use crate::websocket::frame::{self, Opcode};
use crate::websocket::handshake::{self, Rejection};
use crate::websocket::{MessageKind, ViolationKind};
use std::sync::Arc;

/// Poll events after which a receive never says "nothing yet".
const HUNG_UP: i32 = libc::POLLHUP as i32 | libc::POLLRDHUP as i32;

/// Of these, those after which nothing sent arrives either; an end of what the peer says alone may be a half-close.
const GONE: i32 = (libc::POLLHUP | libc::POLLERR) as i32;

/// What a page is told that may not connect. A browser does not show it; whoever looks for the reason does.
const FORBIDDEN_ORIGIN: &str = "pages of this Origin may not connect: add it to allowed_origins of this [[listen]] block of the gateway, if it should\n";

/// How a handshake goes on once its head is read.
enum Next {
    /// With the 101.
    Join,
    /// With what the control core says.
    Ask(Question),
    /// With what the accepting core says.
    Claim,
    /// With a page; `true`: with its head alone.
    Page(Page, bool),
}

impl<R: Ring> Reactor<R> {
    /// The poll says that there is something to read, or that it ended.
    pub(super) fn polled(&mut self, slot: Slot, result: i32, more: bool) {
        let connection = &mut self.connections[slot.0 as usize];
        if !more {
            connection.polling = false;
        }
        if matches!(connection.phase, Phase::Free | Phase::Cut) {
            return;
        }
        if !more {
            // A multishot lasts until a completion without MORE; then it must be armed again.
            self.arm_poll(slot);
        }
        if result >= 0 {
            self.connections[slot.0 as usize].hung_up |= result & HUNG_UP != 0;
            if self.has_left(slot, result) {
                return self.cut_by_peer(slot);
            }
            self.want_read(slot);
        }
    }

    /// Whether nobody is left to hear the answer that it waits for, by the poll's `events`: nothing is read meanwhile, which would
    /// say so otherwise. Who asked for a page may say nothing more and wait for it; who logs in and will say nothing more is cut as
    /// soon as that is read, so it need not be waited for.
    fn has_left(&self, slot: Slot, events: i32) -> bool {
        let visitor = &self.visitors[slot.0 as usize];
        let logs_in = visitor.asks && visitor.reading == Reading::None;
        let waits = visitor.asks || self.connections[slot.0 as usize].phase == Phase::Asking;
        (waits && events & GONE != 0) || (logs_in && events & HUNG_UP != 0)
    }

    /// Reads once more, now or when we can go on with it.
    pub(super) fn want_read(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        let waits = connection.receiving || connection.paused || connection.awaits_ack();
        match connection.phase {
            Phase::Free | Phase::Cut => return,
            Phase::Asking | Phase::Joining => return connection.read_again = true,
            _ if waits => return connection.read_again = true,
            _ => {}
        }
        connection.read_again = false;
        connection.receiving = true;
        connection.in_flight += 1;
        self.ring.recv(Token::new(Kind::Recv, connection.generation, slot));
    }

    pub(super) fn received(&mut self, slot: Slot, result: i32, buffer: Option<BufferId>, nonempty: bool) {
        let connection = &mut self.connections[slot.0 as usize];
        connection.receiving = false;
        // Behind the last bytes a reset may lie, which is no byte to be told of and was part of the event that these were.
        let again = std::mem::take(&mut connection.read_again) || nonempty || connection.hung_up;
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.clear();
        if let Some(buffer) = buffer {
            // Copied out and given back at once: the pool serves all connections, and a turn may take long.
            incoming.extend_from_slice(self.ring.received(&buffer, result.max(0) as usize));
            self.ring.give_back(buffer);
        }
        match result {
            0 => self.peer_ended(slot),
            1.. => {
                assert_eq!(incoming.len(), result as usize, "received bytes lie in a buffer");
                self.metrics.bytes_received.add(result as u64);
                match self.connections[slot.0 as usize].phase {
                    Phase::Handshake => self.handshake(slot, &incoming),
                    Phase::Open => self.input(slot, &incoming),
                    Phase::Asking | Phase::Joining => {
                        self.connections[slot.0 as usize].held().input.extend_from_slice(&incoming)
                    }
                    Phase::Free | Phase::Flushing | Phase::Lingering | Phase::Cut => {}
                }
                // The poll reports new arrivals only: what is there already must be asked for.
                if again {
                    self.want_read(slot);
                }
            }
            _ if result == -libc::ENOBUFS => {
                self.metrics.no_buffers.add(1);
                if !self.ring.planted(Defect::NoBuffersNotRearmed) {
                    let generation = self.connections[slot.0 as usize].generation;
                    self.starved.push(Token::new(Kind::Recv, generation, slot));
                }
            }
            _ if result == -libc::EAGAIN => {
                if again {
                    self.want_read(slot);
                }
            }
            _ => self.cut_by_peer(slot),
        }
        self.incoming = incoming;
    }

    /// Repeats the receives that found no buffer, in their order: all buffers have been given back since.
    pub(super) fn feed_starved(&mut self) {
        for token in std::mem::take(&mut self.starved) {
            if self.connections[token.slot().0 as usize].generation == token.generation() {
                self.want_read(token.slot());
            }
        }
    }

    fn peer_ended(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        if connection.phase == Phase::Flushing {
            // It has said all it wants to; our last words are still on their way.
            connection.ended = true;
        } else {
            self.cut_by_peer(slot);
        }
    }

    pub(super) fn cut_by_peer(&mut self, slot: Slot) {
        if matches!(self.connections[slot.0 as usize].phase, Phase::Handshake | Phase::Asking | Phase::Joining) {
            self.metrics.handshakes_abandoned.add(1);
        }
        self.cut(slot, Cause::ByPeer);
    }

    pub(super) fn handshake(&mut self, slot: Slot, incoming: &[u8]) {
        let index = slot.0 as usize;
        let held = self.connections[index].held.take();
        let all = match held {
            Some(mut held) => {
                held.input.extend_from_slice(incoming);
                std::borrow::Cow::Owned(held.input)
            }
            None => std::borrow::Cow::Borrowed(incoming),
        };
        let Some(all) = self.take_proxy_header(slot, all) else { return };
        match self.negotiate(slot, &all) {
            Ok(Some((_, Next::Claim))) => self.await_verdict(slot, all.into_owned()),
            Ok(Some((used, next))) => {
                if used < all.len() {
                    self.connections[index].held().input.extend_from_slice(&all[used..]);
                }
                match next {
                    Next::Join => self.join_everyone(slot),
                    Next::Ask(question) => self.ask_first(slot, question),
                    Next::Page(page, head) => self.serve_page(slot, page, head),
                    Next::Claim => unreachable!("taken above"),
                }
            }
            Ok(None) => self.connections[index].held().input = all.into_owned(),
            Err(rejection) => {
                self.metrics.handshakes_rejected.add(1);
                self.reply.clear();
                rejection.write(&mut self.reply);
                self.connections[index].egress.reply(&self.reply, &mut self.spares);
                self.say_last_words(slot);
            }
        }
    }

    /// Reads the request head. On success the answer and the greeting are owed, unless a page was asked for, and the head's
    /// length is returned.
    fn negotiate(&mut self, slot: Slot, bytes: &[u8]) -> Result<Option<(usize, Next)>, Rejection> {
        let Some((head, used)) = handshake::parse_head(bytes, self.settings.handshake_bytes_max)? else {
            return Ok(None);
        };
        if self.identify(slot, &head) {
            return Ok(Some((used, Next::Claim)));
        }
        let connection = &mut self.connections[slot.0 as usize];
        if let Some(page) = self.settings.page(connection.listener, head.path) {
            if !matches!(head.method, "GET" | "HEAD") {
                return Err(Rejection::new(405, "this page is read by GET or HEAD\n").with_header("Allow", "GET, HEAD"));
            }
            return Ok(Some((used, Next::Page(page, head.method == "HEAD"))));
        }
        let Some(id) = self.settings.route(connection.listener, head.path) else {
            return Err(Rejection::new(404, "no WebSocket is served at this path\n"));
        };
        let upgrade = handshake::upgrade(&head)?;
        let is_welcome = |origin: &[u8]| {
            let host = head.header("Host").unwrap_or_default();
            std::str::from_utf8(origin)
                .is_ok_and(|o| self.settings.fronts[usize::from(connection.listener)].origins.allow(o, host))
        };
        if !head.values("Origin").all(is_welcome) {
            self.metrics.origins_refused.add(1);
            return Err(Rejection::new(403, FORBIDDEN_ORIGIN));
        }
        let dialect = id.get();
        let token = if self.settings.token_at_connect && dialect.has_users() {
            let token = head.query_value("token").filter(|token| !token.is_empty());
            let token = token.ok_or_else(|| Rejection::new(400, "token is required"))?;
            Some(serde_json::to_string(&token).expect("a string is JSON").into_boxed_str())
        } else {
            None
        };
        let agreed = dialect.negotiate(&head).map_err(|(status, body)| Rejection::new(status, body))?;
        let deflate = if self.settings.deflate { upgrade.deflate_offer } else { None };
        connection.dialect = id;
        connection.session = agreed.session;
        connection.deflate = deflate;
        connection.encoding = match deflate {
            // Frames are shared by all, so a client that asked for a smaller window gets them as they are.
            Some(params) if params.shares_frames() => agreed.deflated,
            _ => agreed.plain,
        };
        connection.decoder = crate::websocket::decoder::Decoder::new(deflate.is_some());
        self.reply.clear();
        handshake::write_101(&mut self.reply, &upgrade, agreed.subprotocol, deflate.is_some());
        dialect.greeting(&mut self.reply);
        let next = match token {
            Some(token) => Next::Ask(Question::Login { token, encoding: connection.encoding }),
            None => Next::Join,
        };
        connection.egress.reply(&self.reply, &mut self.spares);
        Ok(Some((used, next)))
    }

    /// Everyone takes part in what goes to everyone. The 101 leaves when that is sure: who has the greeting misses nothing after it.
    pub(super) fn join_everyone(&mut self, slot: Slot) {
        let index = slot.0 as usize;
        let connection = &mut self.connections[index];
        connection.phase = Phase::Joining;
        let dialect = connection.dialect.get();
        if !dialect.takes_publications() || dialect.connects() {
            return self.open(slot);
        }
        if let Joined::From(..) = self.join_broadcast(slot, 0) {
            self.open(slot);
        }
    }

    /// Lets it take part in what goes to everyone: the first of its subscriptions.
    fn join_broadcast(&mut self, slot: Slot, request: u32) -> Joined {
        let index = slot.0 as usize;
        let connection = &mut self.connections[index];
        debug_assert!(connection.subscriptions.is_empty());
        let encoding = connection.encoding;
        let id = self.interests.find_or_add(InterestKey::Broadcast(encoding));
        let connection = &mut self.connections[index];
        connection.subscriptions.push(id);
        let waiter = Waiter { slot, generation: connection.generation, request };
        self.interests.join(id, waiter)
    }

    /// It introduces itself. Nothing else it asked for is looked at until it is told that it is welcome.
    fn connect(&mut self, slot: Slot, request: u32) {
        match self.join_broadcast(slot, request) {
            Joined::From(..) => self.answer_connect(slot, request),
            Joined::Waiting => self.connections[slot.0 as usize].held().awaits_ack = true,
        }
    }

    fn answer_connect(&mut self, slot: Slot, request: u32) {
        self.connects += 1;
        let client = ConnectId::new(self.settings.seed, self.id, self.connects);
        let connection = &mut self.connections[slot.0 as usize];
        let ping_interval_ms = self.settings.heartbeat_ms(connection.dialect).unwrap_or(0);
        let welcome = Welcome { client, ping_interval_ms };
        self.reply.clear();
        connection.dialect.get().connected(connection.session, request, &welcome, &mut self.reply);
        // Those who come together, after a restart, are not pinged together: steps of the golden ratio spread any number of them.
        let share = self.connects.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        connection.deadline = self.wheel.after(self.now, (ping_interval_ms * share) >> 32);
        self.schedule(slot);
        self.owe_reply(slot);
    }

    fn open(&mut self, slot: Slot) {
        self.metrics.handshakes_ok.add(1);
        self.visitors[slot.0 as usize].is_websocket = true;
        let connection = &mut self.connections[slot.0 as usize];
        self.websockets[connection.dialect as usize] += 1;
        tracing::debug!(
            shard = self.id.0,
            client = %self.visitors[slot.0 as usize].address,
            dialect = connection.dialect.get().name(),
            "connected"
        );
        connection.phase = Phase::Open;
        let timeout = self.settings.first_word_ms(connection.dialect);
        connection.deadline = timeout.map_or(crate::shard::wheel::Tick::NEVER, |ms| self.wheel.after(self.now, ms));
        self.schedule(slot);
        self.make_ready(slot);
        self.resume(slot);
    }

    /// An ack has come for a connection that waited.
    pub(super) fn acknowledged(&mut self, id: InterestId, waiter: Waiter, epoch: Epoch, offset: Offset) {
        let slot = waiter.slot;
        let connection = &mut self.connections[slot.0 as usize];
        assert!(connection.generation == waiter.generation, "who leaves waits for nothing");
        if connection.phase == Phase::Joining {
            return self.open(slot);
        }
        match self.interests.get(id).key.clone() {
            InterestKey::Topic(topic, _) => self.answer_subscribe(slot, waiter.request, &topic, Ok((epoch, offset))),
            InterestKey::Broadcast(_) => self.answer_connect(slot, waiter.request),
        }
        let connection = &mut self.connections[slot.0 as usize];
        if let Some(held) = &mut connection.held {
            held.awaits_ack = false;
        }
        self.resume(slot);
    }

    /// Goes on with what had to wait, and then with reading.
    pub(super) fn resume(&mut self, slot: Slot) {
        self.join_replies(slot);
        self.go_on(slot);
        self.finish_replies(slot);
    }

    fn go_on(&mut self, slot: Slot) {
        let index = slot.0 as usize;
        while let Some(held) = &mut self.connections[index].held {
            if held.awaits_ack {
                return;
            }
            if let Some(command) = held.commands.pop_front() {
                self.carry_out(slot, command);
                continue;
            }
            let input = std::mem::take(&mut held.input);
            if input.is_empty() || self.connections[index].phase != Phase::Open {
                self.connections[index].held = None;
                break;
            }
            if self.connections[index].paused {
                self.connections[index].held().input = input;
                return;
            }
            self.input(slot, &input);
        }
        if self.connections[index].read_again {
            self.want_read(slot);
        }
    }

    fn input(&mut self, slot: Slot, mut bytes: &[u8]) {
        let index = slot.0 as usize;
        while !bytes.is_empty() {
            let connection = &mut self.connections[index];
            if connection.phase != Phase::Open {
                return;
            }
            if connection.paused || connection.awaits_ack() {
                connection.held().input.extend_from_slice(bytes);
                return;
            }
            let dialect = connection.dialect;
            let limits = DecoderLimits { message_bytes_max: self.settings.message_bytes_max(dialect) };
            let held_bytes = connection.decoder.heap_bytes();
            let result = connection.decoder.decode(bytes, &mut self.scratch, &limits);
            let holds_bytes = connection.decoder.heap_bytes();
            self.partial_bytes.set(self.partial_bytes.own() + holds_bytes - held_bytes);
            let decoded = match result {
                Ok(_) if holds_bytes > held_bytes && self.partial_bytes.in_lane() > self.settings.partial_bytes_max => {
                    return self.close(slot, Cause::Partial, 1013, "too much is incomplete, try again", false);
                }
                Ok(decoded) => decoded,
                Err(violation) => {
                    let cause = match violation.kind {
                        ViolationKind::Protocol => Cause::Protocol,
                        ViolationKind::Utf8 => Cause::Utf8,
                        ViolationKind::TooBig => Cause::TooBig,
                    };
                    return self.close(slot, cause, violation.code, violation.reason, false);
                }
            };
            bytes = &bytes[decoded.consumed..];
            if !self.may_say(slot, decoded.frames) {
                return self.close(slot, Cause::Flood, 1008, "too many messages", false);
            }
            let Some(event) = decoded.event else { continue };
            match event {
                Event::Message(kind) => self.message(slot, dialect.get(), kind),
                Event::Ping => {
                    self.reply.clear();
                    frame::write_frame(&mut self.reply, Opcode::Pong, self.scratch.payload());
                    self.owe_frame(slot);
                }
                Event::Pong => {
                    let session = &mut self.connections[index].session;
                    if let Some(command) = dialect.get().control_pong(session) {
                        self.carry_out(slot, command);
                    }
                }
                Event::Close { code } => return self.peer_closes(slot, code),
            }
        }
    }

    /// Takes `count` frames, or commands beyond one a frame, out of what it may say; `false`: that is too many.
    fn may_say(&mut self, slot: Slot, count: u32) -> bool {
        let connection = &mut self.connections[slot.0 as usize];
        let (per_s, burst) = (self.settings.client_messages_per_s_max, self.settings.client_messages_burst_max);
        let now_ms = self.now.as_ms() as u32;
        !self.settings.is_rated(connection.dialect) || connection.allow_frames(count, now_ms, per_s, burst)
    }

    fn message(&mut self, slot: Slot, dialect: &dyn Dialect, kind: MessageKind) {
        self.metrics.messages_received.add(1);
        let mut commands = std::mem::take(&mut self.commands);
        let connection = &mut self.connections[slot.0 as usize];
        dialect.parse(&mut connection.session, kind, self.scratch.payload(), &mut commands);
        // The frame has been counted, and one came with it. A heartbeat comes along with its answer, or once a message.
        let asked = commands.iter().filter(|command| !matches!(command, Command::Heartbeat)).count();
        let more = u32::try_from(asked.saturating_sub(1)).unwrap_or(u32::MAX);
        if more > 0 && !self.may_say(slot, more) {
            commands.clear();
            self.commands = commands;
            return self.close(slot, Cause::Flood, 1008, "too many messages", false);
        }
        self.join_replies(slot);
        for command in commands.drain(..) {
            let connection = &mut self.connections[slot.0 as usize];
            match connection.phase {
                Phase::Open if connection.awaits_ack() => connection.held().commands.push_back(command),
                Phase::Open => self.carry_out(slot, command),
                _ => {}
            }
        }
        self.finish_replies(slot);
        self.commands = commands;
    }

    fn carry_out(&mut self, slot: Slot, command: Command) {
        match command {
            Command::Connect { request } => self.connect(slot, request),
            Command::Subscribe { topic, request } => self.subscribe(slot, topic, request),
            Command::Unsubscribe { topic, request } => self.unsubscribe(slot, &topic, request),
            Command::Login { token } => self.log_in(slot, token),
            Command::Logout => self.log_out(slot),
            Command::SubscribePrivately { topic } => self.subscribe_privately(slot, &topic),
            Command::UnsubscribePrivately { topic } => self.unsubscribe_privately(slot, &topic),
            Command::Reply(bytes) => {
                self.metrics.dialect_messages[self.connections[slot.0 as usize].dialect as usize].add(1);
                self.reply.clear();
                self.reply.extend_from_slice(&bytes);
                self.owe_reply(slot);
            }
            Command::Echo { kind, payload } => self.echo(slot, kind, &payload),
            Command::Heartbeat => {
                let connection = &mut self.connections[slot.0 as usize];
                let Some(ms) = self.settings.heartbeat_ms(connection.dialect) else { return };
                let least = self.wheel.after(self.now, ms);
                match connection.dialect.get().heartbeat() {
                    // The deadline stands at the end of an interval already: it moves on by whole ones.
                    Heartbeat::FromClientAtIntervals if connection.deadline < least => {
                        connection.deadline = connection.deadline.plus_ms(ms);
                    }
                    Heartbeat::FromClientAtIntervals => {}
                    _ => connection.deadline = least,
                }
            }
            Command::Close { code, reason } => self.close(slot, Cause::Dialect, code, reason, false),
            Command::Cut => self.cut(slot, Cause::Dialect),
        }
    }

    fn subscribe(&mut self, slot: Slot, topic: Box<str>, request: u32) {
        let connection = &mut self.connections[slot.0 as usize];
        let dialect_id = connection.dialect;
        let dialect = dialect_id.get();
        if topic.len() > TOPIC_BYTES_MAX {
            return self.answer_subscribe(slot, request, &topic, Err(SubscribeError::NameTooLong));
        }
        if topic.is_empty() {
            // What goes to the empty topic goes to everyone, and this connection is one of them already.
            let position = connection.subscriptions.first().map(|everyone| self.interests.position(everyone));
            let position = position.unwrap_or((Epoch(0), Offset(0)));
            return self.answer_subscribe(slot, request, &topic, Ok(position));
        }
        let known = self.interests.find(&topic, connection.encoding);
        if let Some(id) = known
            && connection.subscriptions.contains(id)
        {
            if !dialect.subscribes_twice() {
                return self.answer_subscribe(slot, request, &topic, Err(SubscribeError::AlreadySubscribed));
            }
            let position = self.interests.position(id);
            return self.answer_subscribe(slot, request, &topic, Ok(position));
        }
        let is_one_too_many = known.is_none() && self.interests.topics() >= self.settings.topics_max;
        if self.topics_held(slot) >= self.settings.topics_per_connection_max(dialect_id) || is_one_too_many {
            self.metrics.topics_refused.add(1);
            return self.answer_subscribe(slot, request, &topic, Err(SubscribeError::TooManyTopics));
        }
        let encoding = self.connections[slot.0 as usize].encoding;
        let id = known.unwrap_or_else(|| {
            let key = InterestKey::Topic(Arc::from(&*topic), encoding);
            self.interests.find_or_add(key)
        });
        let connection = &mut self.connections[slot.0 as usize];
        connection.subscriptions.push(id);
        let waiter = Waiter { slot, generation: connection.generation, request };
        match self.interests.join(id, waiter) {
            Joined::From(epoch, offset) => self.answer_subscribe(slot, request, &topic, Ok((epoch, offset))),
            Joined::Waiting if dialect.answers_in_order() => {
                self.connections[slot.0 as usize].held().awaits_ack = true;
            }
            Joined::Waiting => {}
        }
    }

    pub(super) fn answer_subscribe(
        &mut self,
        slot: Slot,
        request: u32,
        topic: &str,
        result: Result<(Epoch, Offset), SubscribeError>,
    ) {
        self.reply.clear();
        self.connections[slot.0 as usize].dialect.get().subscribed(request, topic, result, &mut self.reply);
        self.owe_reply(slot);
    }

    fn unsubscribe(&mut self, slot: Slot, topic: &str, request: u32) {
        let connection = &mut self.connections[slot.0 as usize];
        let dialect = connection.dialect.get();
        let known = self.interests.find(topic, connection.encoding);
        if let Some(id) = known
            && self.interests.awaits(id, slot)
        {
            // The answer to its subscription goes before the answer to this, and is on its way.
            let held = connection.held();
            held.awaits_ack = true;
            return held.commands.push_front(Command::Unsubscribe { topic: topic.into(), request });
        }
        if let Some(id) = known
            && connection.subscriptions.remove(id)
        {
            self.leave(slot, id);
            self.unheard(slot, topic);
        }
        self.reply.clear();
        dialect.unsubscribed(request, topic, &mut self.reply);
        self.owe_reply(slot);
    }

    fn echo(&mut self, slot: Slot, kind: MessageKind, payload: &[u8]) {
        self.reply.clear();
        let opcode = kind.opcode();
        match self.connections[slot.0 as usize].deflate {
            Some(params) if params.compresses(payload.len()) => self
                .deflater
                .get_or_insert_with(|| Deflater::new(self.settings.deflate_level))
                .write_frame(&mut self.reply, opcode, payload),
            _ => frame::write_frame(&mut self.reply, opcode, payload),
        }
        self.owe_frame(slot);
    }

    /// From here to [`Reactor::finish_replies`] its replies go into one frame, if its dialect wants that.
    fn join_replies(&mut self, slot: Slot) {
        // Within a message that was held, the frame that is open already takes them.
        if self.joining.is_none() && self.connections[slot.0 as usize].dialect.get().joins_replies() {
            self.joining = Some(slot);
        }
    }

    /// Owes the replies joined so far, and joins no more.
    pub(super) fn finish_replies(&mut self, slot: Slot) {
        if self.joining != Some(slot) {
            return;
        }
        self.joining = None;
        let is_heard = matches!(self.connections[slot.0 as usize].phase, Phase::Open);
        if !self.joined.is_empty() && is_heard {
            self.reply.clear();
            frame::write_frame(&mut self.reply, Opcode::Text, &self.joined);
            self.owe_frame(slot);
        }
        self.joined.clear();
    }

    /// Owes `self.reply`, as the dialect wrote it: whole frames, or a line that gets its frame here.
    pub(super) fn owe_reply(&mut self, slot: Slot) {
        if !self.connections[slot.0 as usize].dialect.get().joins_replies() || self.reply.is_empty() {
            return self.owe_frame(slot);
        }
        if !self.joined.is_empty() {
            self.joined.push(b'\n');
        }
        self.joined.extend_from_slice(&self.reply);
        if self.joining.is_none() {
            self.joining = Some(slot);
            self.finish_replies(slot);
        }
        debug_assert!(self.joining.is_none_or(|joining| joining == slot), "replies of one client at a time are joined");
    }

    /// Owes `self.reply`, whole frames. Above the bound of replies the client is not read from until it has read some.
    pub(super) fn owe_frame(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot.0 as usize];
        if !self.reply.is_empty() {
            connection.egress.reply(&self.reply, &mut self.spares);
        }
        if !connection.paused && connection.egress.reply_bytes() > self.settings.reply_bytes_max {
            connection.paused = true;
            self.metrics.reads_paused.add(1);
        }
        self.make_ready(slot);
    }

    /// The peer's close frame: it gets its code back (RFC 6455 §5.5.1), then our side is shut.
    fn peer_closes(&mut self, slot: Slot, code: Option<u16>) {
        self.close_with(slot, Cause::ByPeer, code, "", false);
    }
}
