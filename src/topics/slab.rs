//! Numbered entries, and doubly linked lists through them: membership, removal and age in O(1) without an allocation.
//!
//! An entry is in at most one list, whose links it carries; which one, its owner knows.

use std::ops::{Index, IndexMut};

/// No entry.
pub(super) const NIL: u32 = u32::MAX;

/// Entries by number; numbers are reused. Its memory follows the most entries it ever held.
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn insert(&mut self, entry: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            return index;
        }
        let index = u32::try_from(self.entries.len()).ok().filter(|i| *i != NIL).expect("fewer than 2^32 entries");
        self.entries.push(Some(entry));
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> T {
        let entry = self.entries[index as usize].take().expect("removed once");
        self.free.push(index);
        entry
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().flatten()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, index: u32) -> &T {
        self.entries[index as usize].as_ref().expect("the entry is there")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.entries[index as usize].as_mut().expect("the entry is there")
    }
}

/// An entry's neighbours in the list it is in.
#[derive(Clone, Copy)]
pub(super) struct Links {
    previous: u32,
    next: u32,
}

impl Links {
    pub(super) const NONE: Links = Links { previous: NIL, next: NIL };
}

/// An entry that can be in a list.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A list through the entries of one slab, oldest first.
pub(super) struct List {
    head: u32,
    tail: u32,
    len: usize,
}

impl List {
    pub(super) const EMPTY: List = List { head: NIL, tail: NIL, len: 0 };

    pub(super) fn first(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push_back<T: Linked>(&mut self, slab: &mut Slab<T>, index: u32) {
        *slab[index].links() = Links { previous: self.tail, next: NIL };
        match self.tail {
            NIL => self.head = index,
            tail => slab[tail].links().next = index,
        }
        self.tail = index;
        self.len += 1;
    }

    /// Takes out an entry that is in this list.
    pub(super) fn unlink<T: Linked>(&mut self, slab: &mut Slab<T>, index: u32) {
        let Links { previous, next } = std::mem::replace(slab[index].links(), Links::NONE);
        match previous {
            NIL => self.head = next,
            previous => slab[previous].links().next = next,
        }
        match next {
            NIL => self.tail = previous,
            next => slab[next].links().previous = previous,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(Links);

    impl Linked for Node {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    fn in_order(list: &List, slab: &mut Slab<Node>) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = list.head;
        while at != NIL {
            found.push(at);
            at = slab[at].links().next;
        }
        assert_eq!((found.last().copied().unwrap_or(NIL), found.len()), (list.tail, list.len()));
        found
    }

    #[test]
    fn entries_leave_a_list_from_anywhere() {
        let mut slab = Slab::new();
        let mut list = List::EMPTY;
        for expected in 0..4 {
            assert_eq!(slab.insert(Node(Links::NONE)), expected);
            list.push_back(&mut slab, expected);
        }
        list.unlink(&mut slab, 2);
        assert_eq!(in_order(&list, &mut slab), [0, 1, 3]);
        list.unlink(&mut slab, 0);
        assert_eq!(in_order(&list, &mut slab), [1, 3]);
        list.unlink(&mut slab, 3);
        list.push_back(&mut slab, 0);
        assert_eq!(in_order(&list, &mut slab), [1, 0]);
        list.unlink(&mut slab, 1);
        list.unlink(&mut slab, 0);
        assert!(list.is_empty() && list.first().is_none());
    }

    #[test]
    fn numbers_are_reused() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((slab.remove(a), slab.len()), ("a", 1));
        assert_eq!(slab.insert("c"), a);
        assert_eq!((slab[a], slab[b], slab.len()), ("c", "b", 2));
    }
}
