//! A ring as large as asked for, or smaller where the kernel has no memory for that.
//!
//! io_uring_setup(2) wants each queue in one piece: up to 32 pages in a row may be missing on a machine whose memory is mostly full of
//! cached files, and come back within seconds. (Since 6.14 it would also take single pages, but within a control group it is
//! given one and fails.) Without CAP_IPC_LOCK the queues also count against RLIMIT_MEMLOCK, all of a user's processes together.
//! A smaller ring enters the kernel more often and leaves it to list what has completed beyond its queue: slower, never wrong.

use io_uring::{Builder, IoUring};
use std::io;

/// Entries of a ring's two queues, each a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Submissions that fit before the kernel must be entered.
    pub submissions: u32,
    /// Completions that fit before the kernel keeps a list.
    pub completions: u32,
}

impl Sizes {
    /// Two pages and four: pieces that the kernel always finds. More than any link of entries that we submit.
    const LEAST: Sizes = Sizes { submissions: 128, completions: 1024 };

    /// Half of each queue that is not yet small.
    fn halved(self) -> Option<Sizes> {
        let smaller = Sizes {
            submissions: self.submissions.min((self.submissions / 2).max(Sizes::LEAST.submissions)),
            completions: self.completions.min((self.completions / 2).max(Sizes::LEAST.completions)),
        };
        (smaller != self).then_some(smaller)
    }
}

/// Builds a ring with queues of `wanted`, or of half as much and so on as long as there is no memory for it (ENOMEM), and says what it has.
/// At most ten tries.
///
/// # Errors
/// io_uring_setup(2)'s, or mmap(2)'s.
pub(super) fn build(wanted: Sizes, options: impl Fn(&mut Builder)) -> io::Result<(IoUring, Sizes)> {
    smaller_until(wanted, |sizes| {
        let mut builder = IoUring::builder();
        options(&mut builder);
        builder.setup_cqsize(sizes.completions).build(sizes.submissions)
    })
}

fn smaller_until<T>(wanted: Sizes, build: impl Fn(Sizes) -> io::Result<T>) -> io::Result<(T, Sizes)> {
    let mut sizes = wanted;
    loop {
        match build(sizes) {
            Ok(ring) => return Ok((ring, sizes)),
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => match sizes.halved() {
                Some(smaller) => sizes = smaller,
                None => return Err(e),
            },
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn sizes(submissions: u32, completions: u32) -> Sizes {
        Sizes { submissions, completions }
    }

    /// A kernel with memory for queues of `most`; what was asked of it.
    fn asked(wanted: Sizes, most: Sizes, refusal: i32) -> (io::Result<Sizes>, Vec<Sizes>) {
        let asked = RefCell::new(vec![]);
        let result = smaller_until(wanted, |sizes| {
            asked.borrow_mut().push(sizes);
            if sizes.submissions > most.submissions || sizes.completions > most.completions {
                return Err(io::Error::from_raw_os_error(refusal));
            }
            Ok(())
        });
        (result.map(|((), had)| had), asked.into_inner())
    }

    #[test]
    fn what_is_wanted_is_had_at_once_where_there_is_memory() {
        let (had, tries) = asked(sizes(1024, 8192), sizes(1024, 8192), libc::ENOMEM);
        assert_eq!((had.unwrap(), tries.len()), (sizes(1024, 8192), 1));
    }

    #[test]
    fn both_queues_are_halved_until_there_is_memory() {
        let (had, tries) = asked(sizes(1024, 8192), sizes(1024, 2048), libc::ENOMEM);
        assert_eq!(had.unwrap(), sizes(256, 2048));
        assert_eq!(tries, [sizes(1024, 8192), sizes(512, 4096), sizes(256, 2048)]);
    }

    #[test]
    fn a_queue_that_is_small_stays_as_it_is() {
        let (had, tries) = asked(sizes(64, 65_536), sizes(64, 1024), libc::ENOMEM);
        assert_eq!((had.unwrap(), tries.len()), (sizes(64, 1024), 7));
    }

    #[test]
    fn without_memory_for_the_smallest_the_error_is_the_kernels() {
        let (had, tries) = asked(sizes(1024, 65_536), sizes(0, 0), libc::ENOMEM);
        assert_eq!(had.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        assert_eq!((tries.len(), tries.last()), (7, Some(&Sizes::LEAST)));
    }

    #[test]
    fn another_error_is_not_tried_again() {
        let (had, tries) = asked(sizes(1024, 8192), sizes(0, 0), libc::EPERM);
        assert_eq!((had.unwrap_err().raw_os_error(), tries.len()), (Some(libc::EPERM), 1));
    }
}
