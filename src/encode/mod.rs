//! Publication → frame, exactly once per encoding.

use crate::dialect::Position;
use crate::frame::{Frame, Publication};
use crate::ids::Encoding;

/// Builds frames. Owns the compressor and a scratch buffer; one per control core.
pub struct Encoder {}

impl Encoder {
    /// The wire bytes of `publication` at `position` in `encoding`.
    pub fn frame(&mut self, _publication: &Publication, _position: Position, _encoding: Encoding) -> Frame {
        unimplemented!()
    }
}
