//! Who a client behind a proxy is, and whether one more from there may come in: addresses are counted by the accepting core, and
//! of a client that came through a proxy only the shard learns the address.
//!
//! ```text
//! HeaderDue ─PROXY header─► Unknown ─request head─► named ─no cap─► Uncounted
//!     └──── names a client that is no proxy ───────►  │
//!                                                     └► Claiming ─yes─► Counted (as who comes without a proxy is at once)
//!                                                            └──── no: 503
//! ```
//!
//! The claim is made as soon as the client has a name, be it before its head: who never ends a head counts as well.

use super::Reactor;
use super::life::Cause;
use super::pages::Reading;
use crate::ids::{ClientRef, Slot};
use crate::queue::{CLAIMS_UNDER_WAY_MAX, Claim, Verdict};
use crate::shard::client_address;
use crate::shard::connection::Phase;
use crate::shard::proxy_protocol;
use crate::socket::Ring;
use crate::websocket::Head;
use crate::websocket::handshake::Rejection;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// What is known of a slot's tenant besides its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor {
    /// Who it is, as far as is known; port 0 if a header named it without one.
    pub(super) address: SocketAddr,
    /// How sure that is.
    pub(super) standing: Standing,
    /// What it has to do with pages.
    pub(super) reading: Reading,
    /// A question of its is out.
    pub(super) asks: bool,
    /// It has had its 101.
    pub(super) is_websocket: bool,
}

/// How a tenant's address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A proxy's; its PROXY header is to come.
    HeaderDue,
    /// A proxy's; headers of the request may tell more.
    Unknown,
    /// The client's, told by a proxy; the accepting core is asked whether one more from there may come in.
    Claiming,
    /// The accepting core counts it.
    Counted,
    /// Nobody counts it: it is a proxy's own, or there is no cap.
    Uncounted,
}

/// Claims on their way to the accepting core.
#[derive(Default)]
pub(super) struct Claims {
    /// Not yet pushed. At most one a slot, and releases of those who did not wait.
    line: VecDeque<Claim>,
    /// Pushed, and no verdict yet.
    under_way: usize,
}

impl Claims {
    /// Whether some wait for room.
    pub(super) fn wait(&self) -> bool {
        !self.line.is_empty()
    }

    /// Pushed, and no verdict yet.
    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }
}

impl Visitor {
    pub(super) fn new(address: SocketAddr, standing: Standing) -> Visitor {
        Visitor { address, standing, reading: Reading::None, asks: false, is_websocket: false }
    }

    /// As what the accepting core counts it.
    pub(super) fn counted(&self) -> Option<IpAddr> {
        (self.standing == Standing::Counted).then(|| self.address.ip().to_canonical())
    }
}

impl<R: Ring> Reactor<R> {
    /// The tenant that comes from `address`, at its first moment.
    pub(super) fn visitor(&self, address: SocketAddr, listener: u16) -> Visitor {
        let front = &self.settings.fronts[usize::from(listener)];
        let standing = match front.trusted.contains(address.ip()) {
            false => Standing::Counted,
            true if front.proxy_protocol => Standing::HeaderDue,
            true => Standing::Unknown,
        };
        Visitor::new(address, standing)
    }

    /// Takes a PROXY header that is due off the front of `all`; `None`: it is not whole yet, the client is cut for it, or it
    /// must wait for the accepting core's verdict, which is asked for.
    pub(super) fn take_proxy_header<'a>(&mut self, slot: Slot, all: Cow<'a, [u8]>) -> Option<Cow<'a, [u8]>> {
        let index = slot.0 as usize;
        if self.visitors[index].standing != Standing::HeaderDue {
            return Some(all);
        }
        match proxy_protocol::parse(&all) {
            Ok(None) => {
                self.connections[index].held().input = all.into_owned();
                None
            }
            Ok(Some((used, source))) => {
                let front = &self.settings.fronts[usize::from(self.connections[index].listener)];
                let visitor = &mut self.visitors[index];
                visitor.address = source.unwrap_or(visitor.address);
                visitor.standing = Standing::Unknown;
                let is_proxy = front.trusted.contains(visitor.address.ip());
                if !is_proxy && self.claim(slot) {
                    self.await_verdict(slot, all[used..].to_vec());
                    return None;
                }
                Some(Cow::Owned(all[used..].to_vec()))
            }
            Err(malformed) => {
                self.metrics.proxy_headers_refused.add(1);
                tracing::debug!(shard = self.id.0, proxy = %self.visitors[index].address, "{malformed}");
                self.cut(slot, Cause::Protocol);
                None
            }
        }
    }

    /// Who the client is by its request's head. `true`: it must wait for the accepting core's verdict, which is asked for.
    pub(super) fn identify(&mut self, slot: Slot, head: &Head<'_>) -> bool {
        let index = slot.0 as usize;
        let front = &self.settings.fronts[usize::from(self.connections[index].listener)];
        let visitor = &mut self.visitors[index];
        if visitor.standing != Standing::Unknown {
            return false;
        }
        if let Some(address) = client_address::from_headers(head, front.header, &front.trusted) {
            visitor.address = SocketAddr::new(address, 0);
        }
        self.claim(slot)
    }

    /// It has its name now. `true`: the accepting core is asked whether one more from there may come in.
    fn claim(&mut self, slot: Slot) -> bool {
        let index = slot.0 as usize;
        let front = &self.settings.fronts[usize::from(self.connections[index].listener)];
        let visitor = &mut self.visitors[index];
        if !self.settings.addresses_capped || front.trusted.contains(visitor.address.ip()) {
            visitor.standing = Standing::Uncounted;
            return false;
        }
        visitor.standing = Standing::Claiming;
        let client = ClientRef { slot, generation: self.connections[index].generation };
        self.claims.line.push_back(Claim::Take { client, address: visitor.address.ip().to_canonical() });
        true
    }

    /// Reads no further than `input` until the verdict; the handshake's deadline goes on.
    pub(super) fn await_verdict(&mut self, slot: Slot, input: Vec<u8>) {
        let connection = &mut self.connections[slot.0 as usize];
        connection.phase = Phase::Asking;
        connection.held().input = input;
    }

    /// Gives the accepting core as many claims as its queue takes.
    pub(super) fn push_claims(&mut self) {
        let mut told = false;
        while let Some(claim) = self.claims.line.front().copied() {
            let takes = usize::from(matches!(claim, Claim::Take { .. }));
            if self.claims.under_way + takes > CLAIMS_UNDER_WAY_MAX || self.ends.claims.0.push(claim, 0).is_err() {
                break;
            }
            self.claims.under_way += takes;
            self.claims.line.pop_front();
            told = true;
        }
        if told {
            self.ends.claims.0.ring();
        }
    }

    /// The accepting core's answers.
    pub(super) fn take_verdicts(&mut self) {
        while let Some(Verdict { client, address, admitted }) = self.ends.claims.1.pop() {
            self.claims.under_way = self.claims.under_way.checked_sub(1).expect("a claim is answered once");
            let index = client.slot.0 as usize;
            let is_same = self.connections[index].generation == client.generation;
            let waits = is_same && self.connections[index].phase == Phase::Asking;
            match (waits && self.visitors[index].standing == Standing::Claiming, admitted) {
                (true, true) => {
                    self.visitors[index].standing = Standing::Counted;
                    self.connections[index].phase = Phase::Handshake;
                    // What there is of its head is read once more, now that it may come in.
                    self.handshake(client.slot, &[]);
                    let connection = &self.connections[index];
                    if connection.phase == Phase::Handshake && connection.read_again {
                        self.want_read(client.slot);
                    }
                }
                (true, false) => {
                    self.metrics.handshakes_rejected.add(1);
                    self.visitors[index].standing = Standing::Uncounted;
                    tracing::debug!(shard = self.id.0, client = %address, "refused: too many connections from its address");
                    self.reply.clear();
                    let sentence = "Too many connections from this address: close some, then try again.\n";
                    Rejection::new(503, sentence).with_header("Retry-After", "1").write(&mut self.reply);
                    self.connections[index].egress.reply(&self.reply, &mut self.spares);
                    self.say_last_words(client.slot);
                }
                // It did not wait, and nobody else will give its place back.
                (false, true) => self.claims.line.push_back(Claim::Release { address }),
                (false, false) => {}
            }
        }
    }
}
