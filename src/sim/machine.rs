//! What all parts of one simulated run share: clock, chance, truth, trace, and a way for other cores to run while a shard is
//! in the middle of its turn.

use super::book::Book;
use super::dice::Dice;
use crate::clock::Time;
use crate::socket::Defect;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What the simulated kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Features {
    /// Whatever a new kernel offers.
    #[default]
    Auto,
    /// Linux 6.1: the bell comes as completions of a poll, polls end on their own more often, waits end early.
    Linux6_1,
}

/// Shared by the rings, the clients and the control core of one run.
pub struct Machine {
    clock: Cell<Time>,
    dice: RefCell<Dice>,
    /// What was published.
    pub book: RefCell<Book>,
    /// The planted mistake.
    pub defect: Option<Defect>,
    /// The simulated kernel's age.
    pub features: Features,
    /// Say everything that happens on stderr.
    pub traced: bool,
    /// Nobody disturbs any more: no resets by the network, no short sends, no stalls.
    pub calm: Cell<bool>,
    /// Longest time between a shard's decision to end a connection and the end.
    pub patience_ms: Cell<u64>,
    elsewhere: RefCell<Option<Box<dyn FnMut()>>>,
}

/// Says what happens, if anybody listens.
macro_rules! trace {
    ($machine:expr, $($what:tt)*) => {
        if $machine.traced {
            eprintln!("{:>12.6} {}", $machine.now().0 as f64 / 1e9, format_args!($($what)*));
        }
    };
}
pub(super) use trace;

impl Machine {
    /// When every run begins: not 0, so that a forgotten time shows.
    pub const START: Time = Time(1_000_000_000);

    /// A machine at its start.
    pub fn new(seed: u64, book: Book, defect: Option<Defect>, features: Features, traced: bool) -> Rc<Machine> {
        Rc::new(Machine {
            clock: Cell::new(Self::START),
            dice: RefCell::new(Dice::new(seed)),
            book: RefCell::new(book),
            defect,
            features,
            traced,
            calm: Cell::new(false),
            patience_ms: Cell::new(0),
            elsewhere: RefCell::new(None),
        })
    }

    /// The present.
    pub fn now(&self) -> Time {
        self.clock.get()
    }

    /// The clock goes on to `time`, or stays where it is if that is past.
    pub fn advance_to(&self, time: Time) {
        self.clock.set(self.clock.get().max(time));
    }

    /// The clock goes on by `ns`.
    pub fn spend(&self, ns: u64) {
        self.clock.set(Time(self.clock.get().0 + ns));
    }

    /// Draws.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Dice) -> T) -> T {
        draw(&mut self.dice.borrow_mut())
    }

    /// Yes in `per_mille` of a thousand cases.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.draw(|dice| dice.chance(per_mille))
    }

    /// As [`Machine::chance`] while the world is rough, never when it is calm.
    pub fn mishap(&self, per_mille: u64) -> bool {
        !self.calm.get() && self.chance(per_mille)
    }

    /// A number within `range`.
    pub fn within(&self, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.draw(|dice| dice.within(range))
    }

    /// Sets what other cores do when they get a moment.
    pub fn set_elsewhere(&self, work: Option<Box<dyn FnMut()>>) {
        *self.elsewhere.borrow_mut() = work;
    }

    /// Lets other cores run for a moment.
    pub fn run_elsewhere(&self) {
        if let Ok(mut work) = self.elsewhere.try_borrow_mut()
            && let Some(work) = work.as_mut()
        {
            work();
        }
    }
}
