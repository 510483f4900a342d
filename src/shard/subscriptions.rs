//! What one connection takes part in: mostly what goes to everyone and one topic, and these two lie in place. A heap block of its own
//! would cost each of a million connections another 40 bytes.

use crate::ids::InterestId;

/// No interest has this number: there would have to be four thousand million of them.
const NONE: InterestId = InterestId(u32::MAX);

/// The interests of a connection, the first one first; the others in any order.
///
/// ```text
/// none, one or two    [a|b]   more: none
/// more                [a|b]   more: [c, d …]
/// ```
#[derive(Debug)]
pub struct Subscriptions {
    first: [InterestId; 2],
    #[expect(clippy::box_collection, reason = "8 bytes in each connection instead of 24")]
    more: Option<Box<Vec<InterestId>>>,
}

const _: () = assert!(size_of::<Subscriptions>() <= 16, "an idle connection is paid for a million times");

impl Default for Subscriptions {
    fn default() -> Subscriptions {
        Subscriptions { first: [NONE; 2], more: None }
    }
}

impl Subscriptions {
    /// Adds one that is not among them.
    pub fn push(&mut self, id: InterestId) {
        debug_assert!(id != NONE && !self.contains(id));
        match self.first.iter_mut().find(|place| **place == NONE) {
            Some(place) => *place = id,
            None => self.more.get_or_insert_default().push(id),
        }
    }

    /// Takes it away; the last one takes its place. `false`: it is not among them.
    pub fn remove(&mut self, id: InterestId) -> bool {
        let Some(index) = self.iter().position(|its| its == id) else { return false };
        let last = match &mut self.more {
            Some(more) => {
                let last = more.pop().expect("it is dropped once empty");
                if more.is_empty() {
                    self.more = None;
                }
                last
            }
            None => {
                let place = if self.first[1] == NONE { 0 } else { 1 };
                std::mem::replace(&mut self.first[place], NONE)
            }
        };
        if last != id {
            match (index.checked_sub(2), &mut self.more) {
                (None, _) => self.first[index] = last,
                (Some(index), more) => more.as_mut().expect("there are more than two")[index] = last,
            }
        }
        true
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = InterestId> {
        let more = self.more.iter().flat_map(|more| more.iter());
        self.first.iter().take_while(|id| **id != NONE).chain(more).copied()
    }

    /// Whether it is among them.
    pub fn contains(&self, id: InterestId) -> bool {
        self.iter().any(|its| its == id)
    }

    /// The one that was added first, while it is there.
    pub fn first(&self) -> Option<InterestId> {
        self.iter().next()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.first.iter().filter(|id| **id != NONE).count() + self.more.as_ref().map_or(0, |more| more.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first[0] == NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_a_list_would_be_whatever_comes_and_goes() {
        // Every sequence of seven steps over five numbers: one that is there goes, another comes.
        for steps in 0..5u32.pow(7) {
            let (mut its, mut model) = (Subscriptions::default(), Vec::new());
            for step in 0..7 {
                let id = InterestId(steps / 5u32.pow(step) % 5);
                match model.iter().position(|known| *known == id) {
                    Some(at) => {
                        model.swap_remove(at);
                        assert!(its.remove(id));
                    }
                    None => {
                        assert!(!its.remove(id));
                        model.push(id);
                        its.push(id);
                    }
                }
                assert!(its.iter().eq(model.iter().copied()), "{its:?} is not {model:?}");
                assert_eq!((its.len(), its.first()), (model.len(), model.first().copied()));
                assert_eq!(its.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn two_need_no_heap_and_what_the_third_needed_goes_with_it() {
        let mut its = Subscriptions::default();
        its.push(InterestId(1));
        its.push(InterestId(2));
        assert!(its.more.is_none());
        its.push(InterestId(3));
        assert!(its.more.is_some() && its.remove(InterestId(1)) && its.more.is_none());
        assert_eq!(its.iter().collect::<Vec<_>>(), [InterestId(3), InterestId(2)]);
    }
}
