//! Every kernel setting that many connections need: one table for `fanwire doctor`, `fanwire tune` and `tuning/sysctl.d`.
//!
//! A knob says what is wanted for a [`Demand`], why, and what happens without. Limits are only ever raised: a machine that has
//! more keeps it.

use super::Demand;
use super::root::{Root, Unseen};

/// One sysctl.
#[derive(Debug)]
pub struct Knob {
    /// As sysctl(8) knows it.
    pub name: &'static str,
    /// What it is for, and what happens without: one or two sentences.
    pub why: &'static str,
    /// What a kernel has by itself, in words.
    pub default: &'static str,
    /// What is wanted; `None`: nothing is asked of it.
    pub wanted: fn(&Demand) -> Option<Wanted>,
    /// The least with which the connections come up at all; `None`: without, it is only slower or less safe.
    pub needed: fn(&Demand) -> Option<u64>,
    /// Who may change it.
    pub hand: Hand,
}

/// Whose hand a knob is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// `fanwire tune` sets it, and `tuning/sysctl.d` has it.
    Tune,
    /// As above, but in the file for any machine it is a comment: many have far more, and a file can only set, not raise.
    TuneHere,
    /// As above, and in the file with a `-` in front: it may not be there yet when the file is read.
    TuneIfThere,
    /// `fanwire doctor` shows it; changing it is a decision that somebody must make.
    Yours,
}

/// What a knob should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This or more.
    AtLeast(u64),
    /// Each of the three numbers this or more.
    AtLeastEach([u64; 3]),
    /// Two numbers: the first this or less, the second this or more.
    Range(u64, u64),
    /// This and nothing else.
    Exactly(u64),
    /// The last of its numbers this or less.
    LastAtMost(u64),
    /// The last of its numbers this or more.
    LastAtLeast(u64),
}

impl Wanted {
    /// Whether `found`, as the kernel wrote it, will do; `None` if it is not what such a knob holds.
    pub fn is_met(&self, found: &str) -> Option<bool> {
        let found = numbers(found)?;
        let last = *found.last()?;
        Some(match (self, &found[..]) {
            (Wanted::AtLeast(wanted), [found]) => found >= wanted,
            (Wanted::Exactly(wanted), [found]) => found == wanted,
            (Wanted::AtLeastEach(wanted), [_, _, _]) => found.iter().zip(wanted).all(|(found, wanted)| found >= wanted),
            (Wanted::Range(low, high), [first, last]) => first <= low && last >= high,
            (Wanted::LastAtMost(wanted), _) => last <= *wanted,
            (Wanted::LastAtLeast(wanted), _) => last >= *wanted,
            _ => return None,
        })
    }

    /// What to write where `found` was: what is better already is kept. Where nothing is known, what is wanted; `None` if that is not
    /// a whole value.
    pub fn value(&self, found: Option<&str>) -> Option<String> {
        let mut numbers = found.and_then(numbers).unwrap_or_default();
        match (self, &mut numbers[..]) {
            (Wanted::AtLeast(wanted) | Wanted::Exactly(wanted), _) => return Some(wanted.to_string()),
            (Wanted::AtLeastEach(wanted), [a, b, c]) => {
                [a, b, c].into_iter().zip(wanted).for_each(|(n, wanted)| *n = (*n).max(*wanted));
            }
            (Wanted::AtLeastEach(wanted), _) => numbers = wanted.to_vec(),
            (Wanted::Range(low, high), [first, last]) => (*first, *last) = ((*first).min(*low), (*last).max(*high)),
            (Wanted::Range(low, high), _) => numbers = vec![*low, *high],
            (Wanted::LastAtMost(wanted) | Wanted::LastAtLeast(wanted), [.., last]) => *last = *wanted,
            (Wanted::LastAtMost(_) | Wanted::LastAtLeast(_), []) => return None,
        }
        Some(numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::AtLeast(n) => write!(f, "{n} or more"),
            Wanted::AtLeastEach([a, b, c]) => write!(f, "{a} {b} {c} or more"),
            Wanted::Range(low, high) => write!(f, "{low} {high} or wider"),
            Wanted::Exactly(n) => write!(f, "{n}"),
            Wanted::LastAtMost(n) => write!(f, "the last number {n} or less"),
            Wanted::LastAtLeast(n) => write!(f, "the last number {n} or more"),
        }
    }
}

/// The numbers of a knob, separated by blanks; `None` if there is anything else.
pub(super) fn numbers(text: &str) -> Option<Vec<u64>> {
    let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    (!numbers.is_empty()).then_some(numbers)
}

impl Knob {
    /// Its file, absolute on the machine.
    pub fn path(&self) -> String {
        format!("/proc/sys/{}", self.name.replace('.', "/"))
    }

    /// What it is now, without blanks around it and with single ones between.
    ///
    /// # Errors
    /// [`Unseen`].
    pub fn read(&self, root: &Root) -> Result<String, Unseen> {
        Ok(root.read(&self.path())?.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Whether it is there only while the firewall tracks connections.
    pub fn is_of_conntrack(&self) -> bool {
        self.name.contains("nf_conntrack")
    }

    /// Whether it can be changed from here at all: in a network namespace some are shown that only the host may set.
    pub fn is_settable(&self, root: &Root) -> bool {
        root.is_writable(&self.path())
    }

    /// The command that sets it, to paste.
    pub fn command(&self, value: &str) -> String {
        format!("sudo sysctl -w {}='{value}'", self.name)
    }
}

/// The pages that sysctls count in. Fanwire's two architectures have these; a kernel with larger ones is given more than it needs.
const PAGE_BYTES: u64 = 4096;

/// Connections that the server closes first wait for a minute, or are orphans: a part of all at once.
fn closing(demand: &Demand) -> u64 {
    // At a million as much as a kernel takes by itself on a large machine, so that the file lowers none.
    (demand.connections / 4).next_power_of_two().max(65_536)
}

/// Clients that come at once after a restart stand in the queues of the listener.
fn arriving(demand: &Demand) -> u64 {
    (demand.connections / 8).next_power_of_two().max(4096).min(demand.listen_backlog)
}

/// Ends of connections on this machine.
fn ends(demand: &Demand) -> u64 {
    demand.connections * if demand.clients_here { 2 } else { 1 }
}

fn nothing(_: &Demand) -> Option<u64> {
    None
}

/// All of them, in the order of their names' importance to whoever reads the list.
pub const KNOBS: &[Knob] = &[
    Knob {
        name: "kernel.io_uring_disabled",
        why: "The gateway is built on io_uring: 1 refuses it to who is not in kernel.io_uring_group, 2 to everybody.",
        default: "0",
        wanted: |_| Some(Wanted::Exactly(0)),
        needed: nothing, // Whether a ring can be had is tried: that is what counts.
        hand: Hand::Yours,
    },
    Knob {
        name: "fs.nr_open",
        why: "The highest RLIMIT_NOFILE that can be given (LimitNOFILE= above it fails). A shard's file table holds that many connections, \
              1048576 at most.",
        default: "1048576",
        wanted: |_| Some(Wanted::AtLeast(1 << 20)),
        needed: nothing, // The limit itself is looked at.
        hand: Hand::TuneHere,
    },
    Knob {
        name: "fs.file-max",
        why: "Open files of the whole machine, connections included: above it accept(2) fails with ENFILE, but for root.",
        default: "a tenth of the memory in KiB; systemd raises it to the maximum",
        wanted: |d| Some(Wanted::AtLeast(ends(d) + ends(d) / 10 + 65_536)),
        needed: |d| Some(ends(d) + 4096),
        hand: Hand::TuneHere,
    },
    Knob {
        name: "net.core.somaxconn",
        why: "Connections that wait to be accepted, when all clients come back at once; it cuts shards.listen_backlog. Above it a client's \
              SYN is dropped and it tries again after 1 s, 3 s, 7 s.",
        default: "4096",
        wanted: |d| Some(Wanted::AtLeast(arriving(d))),
        needed: nothing,
        hand: Hand::Tune,
    },
    Knob {
        name: "net.ipv4.tcp_max_syn_backlog",
        why: "Handshakes of TCP under way on a listener; above it SYN cookies are sent, which cost TCP options, or SYNs are dropped.",
        default: "128 to 4096, by memory",
        wanted: |d| Some(Wanted::AtLeast(arriving(d))),
        needed: nothing,
        hand: Hand::Tune,
    },
    Knob {
        name: "net.ipv4.ip_local_port_range",
        why: "For a proxy or a load on this machine alone: each connection it opens to one address and port takes a port of these, 28,232 by \
              default. The range begins above the gateway's own ports, so that none of them is taken by a client.",
        default: "32768 60999",
        wanted: |_| Some(Wanted::Range(10_240, 65_535)),
        needed: nothing,
        hand: Hand::Tune,
    },
    Knob {
        name: "net.ipv4.tcp_mem",
        why: "Pages that all of TCP may hold: idle connections hold none, but what slow clients have not read stands here, and a page for one \
              message in flight to each. Above the last number sends stall and connections are reset.",
        default: "4.7 %, 6.25 % and 9.4 % of the memory",
        wanted: |d| {
            let high = d.tcp_bytes().div_ceil(PAGE_BYTES);
            Some(Wanted::AtLeastEach([high / 2, high * 2 / 3, high]))
        },
        needed: nothing,
        hand: Hand::TuneHere,
    },
    Knob {
        name: "net.core.wmem_max",
        why: "It cuts shards.socket_send_buffer_bytes without a word. That setting, not tcp_wmem, bounds what a client that does not read \
              can pin.",
        default: "212992; 4 MiB since Linux 6.17",
        wanted: |d| Some(Wanted::AtLeast(d.send_buffer_bytes)),
        needed: nothing,
        hand: Hand::TuneHere,
    },
    Knob {
        name: "net.ipv4.tcp_wmem",
        why: "Not used for clients (shards.socket_send_buffer_bytes is); publishers' connections grow within it. An idle connection holds \
              none of it.",
        default: "4096 16384 4194304",
        wanted: |_| Some(Wanted::LastAtLeast(65_536)),
        needed: nothing,
        hand: Hand::Yours,
    },
    Knob {
        name: "net.ipv4.tcp_rmem",
        why: "A client that sends more than it is read from (limits.reply_bytes_max) can pin up to the last number. Idle connections \
              hold none of it, so a low first number saves nothing.",
        default: "4096 131072 6291456, up to 33554432 since Linux 6.17",
        wanted: |_| Some(Wanted::LastAtMost(33_554_432)),
        needed: nothing,
        hand: Hand::Yours,
    },
    Knob {
        name: "net.core.rmem_max",
        why: "The gateway sets no SO_RCVBUF, so nothing here asks for more than the kernel's own.",
        default: "212992; 4 MiB since Linux 6.17",
        wanted: |_| Some(Wanted::AtLeast(65_536)),
        needed: nothing,
        hand: Hand::Yours,
    },
    Knob {
        name: "net.ipv4.tcp_max_orphans",
        why: "Closed connections whose client has not answered yet, as in a drain or when a network fails: above it they are reset, and the \
              client does not see why it was closed.",
        default: "by memory, such as 131072 at 24 GiB",
        wanted: |d| Some(Wanted::AtLeast(closing(d))),
        needed: nothing,
        hand: Hand::Tune,
    },
    Knob {
        name: "net.ipv4.tcp_max_tw_buckets",
        why: "Who closes first keeps the connection for a minute, and in a drain that is the gateway. Above it they are forgotten at \
              once, with a line in the kernel's log for each burst.",
        default: "by memory, such as 131072 at 24 GiB",
        wanted: |d| Some(Wanted::AtLeast(closing(d))),
        needed: nothing,
        hand: Hand::Tune,
    },
    Knob {
        name: "net.netfilter.nf_conntrack_max",
        why: "Connections that a firewall or NAT tracks: above it packets of new ones are dropped. Through a proxy on this machine each \
              client is two. Better still, do not track them (`notrack`).",
        default: "by memory, such as 262144",
        wanted: |d| Some(Wanted::AtLeast(d.connections * 5 / 2)),
        needed: |d| Some(d.connections + d.connections / 20),
        hand: Hand::TuneIfThere,
    },
];

/// The file for `/etc/sysctl.d`: every knob that [`Hand`] lets it have, with its reason and its undo. `found` is what the
/// machine has, so that nothing better is lowered; a file for any machine has nothing found.
pub fn drop_in(demand: &Demand, found: impl Fn(&Knob) -> Option<String>) -> String {
    let mut text = format!(
        "# Kernel settings for {} connections of Fanwire. `fanwire tune` prints what this machine lacks of it,\n\
         # `fanwire tune --print` this file. Into force: sudo cp THIS /etc/sysctl.d/90-fanwire.conf && sudo sysctl --system\n\
         # Undo: remove it there; then the undo line of each setting, or a reboot.\n",
        demand.connections
    );
    for knob in KNOBS.iter().filter(|knob| knob.hand != Hand::Yours) {
        let Some(wanted) = (knob.wanted)(demand) else { continue };
        let here = found(knob);
        let value = match &here {
            Some(here) if wanted.is_met(here) == Some(true) => here.clone(),
            _ => wanted.value(here.as_deref()).expect("what tune sets is a whole value"),
        };
        let name = knob.name;
        text += &format!("\n{}", comment(knob.why));
        text += &match &here {
            Some(before) => format!("# Undo: sysctl -w {name}='{before}'\n"),
            None => format!("# Undo: the kernel's default is {}\n", knob.default),
        };
        text += &match knob.hand {
            Hand::TuneHere if here.is_none() => {
                format!(
                    "# Not set here, for many machines have more. Where `sysctl {name}` says less:\n# {name} = {value}\n"
                )
            }
            Hand::TuneIfThere => format!("# With `-`, for it is not there before the module is.\n-{name} = {value}\n"),
            _ => format!("{name} = {value}\n"),
        };
    }
    text
}

/// As lines of a comment of at most 110 characters.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + 1 + word.len() > 110) {
            lines.push("#".into());
        }
        let line = lines.last_mut().expect("one at least");
        line.push(' ');
        line.push_str(word);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(connections: u64) -> Demand {
        Demand::new(connections, &crate::config::Config::default())
    }

    #[test]
    fn every_knob_has_a_name_of_its_own_and_says_what_it_is_for() {
        let mut names: Vec<_> = KNOBS.iter().map(|knob| knob.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KNOBS.len());
        for knob in KNOBS {
            assert!(knob.why.len() > 40 && knob.why.ends_with('.') && !knob.default.is_empty(), "{}", knob.name);
            assert!((knob.wanted)(&demand(1000)).is_some(), "{}", knob.name);
        }
    }

    #[test]
    fn what_is_needed_is_never_more_than_what_is_wanted() {
        for connections in [1, 1000, 1_000_000, 10_000_000] {
            for knob in KNOBS {
                if let Some(needed) = (knob.needed)(&demand(connections)) {
                    let wanted = (knob.wanted)(&demand(connections)).unwrap();
                    let Wanted::AtLeast(wanted) = wanted else { panic!("{}: {wanted}", knob.name) };
                    assert!(needed <= wanted, "{} at {connections}", knob.name);
                }
            }
        }
    }

    #[test]
    fn a_limit_is_raised_and_never_lowered() {
        assert_eq!(Wanted::AtLeast(65_535).is_met("4096"), Some(false));
        assert_eq!(Wanted::AtLeast(65_535).is_met("9223372036854775807"), Some(true));
        assert_eq!(Wanted::AtLeast(1).is_met("unlimited"), None);
        let pages = Wanted::AtLeastEach([10, 20, 30]);
        assert_eq!(pages.is_met("10\t20\t30\n"), Some(true));
        assert_eq!(pages.is_met("50 20 29"), Some(false));
        assert_eq!(pages.value(Some("50 5 29")).unwrap(), "50 20 30");
        assert_eq!(pages.value(None).unwrap(), "10 20 30");
        assert_eq!(pages.is_met("10 20"), None, "a value of another shape");
        let ports = Wanted::Range(10_240, 65_535);
        assert_eq!(ports.is_met("1024 65535"), Some(true));
        assert_eq!(ports.value(Some("1024 60999")).unwrap(), "1024 65535");
        assert_eq!(Wanted::LastAtMost(100).value(Some("1 2 300")).unwrap(), "1 2 100");
        assert_eq!(Wanted::LastAtMost(100).value(None), None);
    }

    #[test]
    fn the_drop_in_of_a_machine_lowers_nothing_it_has() {
        let text = drop_in(&demand(1_000_000), |knob| match knob.name {
            "fs.file-max" => Some("9223372036854775807".into()),
            "net.core.somaxconn" => Some("4096".into()),
            _ => None,
        });
        assert!(text.contains("\nfs.file-max = 9223372036854775807\n"), "{text}");
        assert!(text.contains("\n# Undo: sysctl -w net.core.somaxconn='4096'\nnet.core.somaxconn = 65535\n"), "{text}");
        assert!(!text.contains("io_uring_disabled"), "that is the operator's decision");
        assert!(text.lines().all(|line| line.len() <= 130), "{text}");
    }

    #[test]
    fn the_drop_in_for_any_machine_sets_nothing_that_systemd_has_raised() {
        let text = drop_in(&demand(1_000_000), |_| None);
        assert!(text.contains("\n# fs.file-max = ") && !text.contains("\nfs.file-max"), "{text}");
        assert!(text.contains("\n-net.netfilter.nf_conntrack_max = 2500000\n"), "{text}");
    }
}
