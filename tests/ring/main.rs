//! The shard's ring and its reactor on real rings and real sockets: each trap that io_uring and TCP set, once.
//!
//! `kernel` drives [`fanwire::socket::uring::UringRing`] by hand, `shard` a whole reactor on a thread of its own. Every test runs
//! twice: with all that this kernel has, and with what Linux 6.1 has.

mod kernel;
mod rig;
mod shard;

/// A test on each set of features.
#[macro_export]
macro_rules! on_both_kernels {
    ($($name:ident,)*) => {
        mod newest {
            $(#[test] fn $name() { super::$name(fanwire::socket::uring::Features::probe()); })*
        }
        mod linux_6_1 {
            $(#[test] fn $name() { super::$name(fanwire::socket::uring::Features::LINUX_6_1); })*
        }
    };
}
