//! What a shard asks of the kernel, and what comes back.

use super::Token;
use crate::clock::Time;
use crate::frame::Outgoing;

/// A provided buffer that holds received bytes until it is given back. Only the ring that filled it knows it.
#[derive(Debug, PartialEq, Eq)]
pub struct BufferId(pub u16);

/// One completion.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// Bytes, slot or flags, or `-errno`.
    pub result: i32,
    /// The submission lives on and completes again (IORING_CQE_F_MORE).
    pub more: bool,
    /// Where received bytes lie.
    pub buffer: Option<BufferId>,
    /// More bytes wait in the socket (IORING_CQE_F_SOCK_NONEMPTY).
    pub nonempty: bool,
    /// The bytes of a send, handed back.
    pub returned: Option<Outgoing>,
}

/// Mistakes that the simulation can plant, to show that it finds them. A real ring has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A second send is submitted while one is in flight.
    TwoSendsInFlight,
    /// A short send is taken for a whole one.
    ShortSendIgnored,
    /// A slot gets its next tenant before its last completion is in.
    SlotReusedEarly,
    /// The bytes of a send are given back before its completion.
    BufferReturnedEarly,
    /// A receive that found no buffer is not repeated.
    NoBuffersNotRearmed,
    /// The core sleeps without looking at its queues once more.
    LostWakeUp,
    /// An answer about an earlier life of an interest is taken for the present one.
    StaleInterestAck,
    /// The answer to a login is taken by the slot's next tenant.
    LateLoginTaken,
    /// Who logs out goes on getting what is its user's.
    LogoutForgotten,
}

/// The kernel as a shard sees it. Submissions are queued by the methods and reach the kernel in [`Ring::enter`]; a full
/// submission queue is entered by itself. Each connection has at most one send and one receive in flight.
pub trait Ring {
    /// Whether a planted defect is active. Constant `false` outside the simulation, and so compiled away.
    #[inline(always)]
    fn planted(&self, _defect: Defect) -> bool {
        false
    }

    /// The present; the same moment until the next [`Ring::enter`] is allowed.
    fn now(&self) -> Time;

    /// Arms a multishot poll for readable, half-closed and hung up on the token's slot. Completes with
    /// [`Completion::more`] until it ends.
    fn poll_readable(&mut self, token: Token);

    /// Receives once into a provided buffer, without waiting (MSG_DONTWAIT): bytes, 0 at the end, `-EAGAIN` with nothing there,
    /// `-ENOBUFS` when all buffers are out.
    fn recv(&mut self, token: Token);

    /// Sends all of `bytes` (MSG_WAITALL | MSG_NOSIGNAL). A result below their length means that the connection is broken.
    fn send(&mut self, token: Token, bytes: Outgoing);

    /// Shuts down our side: the peer reads what was sent, then the end.
    fn shutdown_write(&mut self, token: Token);

    /// Cancels the poll named `poll`, if any, then shuts both sides down and frees the file slot: one completion each of kind
    /// [`super::Kind::Cancel`] (only with `poll`), [`super::Kind::Shutdown`] and [`super::Kind::Close`], with `token`'s
    /// generation and slot. Whatever else is in flight on the slot completes too, in any order.
    fn close(&mut self, token: Token, poll: Option<Token>);

    /// Submits what is queued. Waits for a completion until `wait` (not at all if `None`); may come back early. On return,
    /// sends that did not have to wait for the peer have completed.
    fn enter(&mut self, wait: Option<Time>);

    /// The next of the completions that were there when [`Ring::enter`] came back, if one is left. What is submitted meanwhile
    /// completes after the next one, so a loop that submits for each completion ends, however much peers send.
    fn completion(&mut self) -> Option<Completion>;

    /// Bytes received: `length` as the completion's result said.
    fn received(&self, buffer: &BufferId, length: usize) -> &[u8];

    /// Gives a provided buffer back.
    fn give_back(&mut self, buffer: BufferId);

    /// Called between "I am about to sleep" and the last look at the queues; a place where other cores may run in a simulation.
    fn about_to_sleep(&mut self) {}
}
