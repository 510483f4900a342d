//! Changes kernel settings, and can take every change back.
//!
//! ```text
//! plan (reads only) ─► lock ─► state on disk: what was there ─► one write each, read back ─► done
//!                                                      └─ one fails: those before it are put back, in reverse order
//! ```
//!
//! The state is written before the first change, whole or not at all, and keeps what was there before the *first* apply: whoever
//! applies twice and reverts once is where he began.

use super::knobs::{Hand, KNOBS};
use super::nic::Nic;
use super::root::{Root, Unseen};
use super::{Demand, drop_in};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// One setting, from what it is to what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its file.
    pub path: String,
    /// What it is now, on one line.
    pub before: String,
    /// What it is to be.
    pub after: String,
    /// What for.
    pub why: String,
}

impl Change {
    pub(super) fn new(path: String, before: &str, after: String, why: String) -> Change {
        Change { path, before: before.to_owned(), after, why }
    }

    /// What people call it: a sysctl's name, or its file.
    pub fn name(&self) -> String {
        name(&self.path)
    }
}

fn name(path: &str) -> String {
    path.strip_prefix("/proc/sys/").map_or_else(|| path.to_owned(), |sysctl| sysctl.replace('/', "."))
}

/// What is to be done. Making one changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// For so many.
    pub connections: u64,
    /// The settings to change, in this order.
    pub changes: Vec<Change>,
    /// Settings that could not be seen and are left alone, with what to do about it.
    pub left_alone: Vec<String>,
    /// File to write, and its text.
    pub file: Option<(PathBuf, String)>,
}

impl Plan {
    /// What this machine lacks for `demand`; with `nic`, its work spread over `cpus`; with `file`, the sysctls for the next boots.
    pub fn new(root: &Root, demand: &Demand, nic: Option<&Nic>, cpus: &[u32], file: Option<&Path>) -> Plan {
        let (mut changes, mut left_alone) = (Vec::new(), Vec::new());
        for knob in KNOBS.iter().filter(|knob| knob.hand != Hand::Yours) {
            let Some(wanted) = (knob.wanted)(demand) else { continue };
            let found = match knob.read(root) {
                Ok(found) => found,
                Err(Unseen::Missing) if knob.is_of_conntrack() => continue,
                Err(e) => {
                    left_alone.push(format!("{} could not be read: {}", knob.name, e.remedy()));
                    continue;
                }
            };
            match (wanted.is_met(&found), wanted.value(Some(&found))) {
                (Some(true), _) => {}
                (Some(false), Some(after)) if !knob.is_settable(root) => {
                    left_alone.push(format!("{} is the host's: run there {}", knob.name, knob.command(&after)));
                }
                (Some(false), Some(after)) => {
                    changes.push(Change::new(knob.path(), &found, after, knob.why.to_owned()))
                }
                _ => left_alone
                    .push(format!("{} is {found:?}, which is not understood: set it by hand to {wanted}", knob.name)),
            }
        }
        if let Some(nic) = nic {
            changes.extend(nic.changes(cpus));
        }
        let file = file.map(|path| (path.to_owned(), drop_in(demand, |knob| knob.read(root).ok())));
        Plan { connections: demand.connections, changes, left_alone, file }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.file.is_none()
    }
}

/// What was there before the first change, on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// The boot it was made in: interrupts have other numbers in the next.
    boot: String,
    /// The network namespace it was made in: others have settings of their own.
    namespace: String,
    saved: Vec<Saved>,
}

const FORMAT: u32 = 1;
/// A state larger than this is none.
const STATE_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    path: String,
    /// Byte for byte; `None`: there was no such file.
    before: Option<String>,
    after: String,
    /// A file of ours, written whole, rather than a setting of the kernel.
    is_file: bool,
}

/// What was done, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What was done.
    pub done: Vec<String>,
    /// What is worth knowing about it.
    pub remarks: Vec<String>,
}

impl Outcome {
    /// As text.
    pub fn lines(&self) -> String {
        self.done.iter().chain(&self.remarks).map(|line| format!("{line}\n")).collect()
    }
}

/// Why not, and how things are now.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Before the first change.
    #[error("nothing was changed: {0}")]
    Nothing(String),
    /// All that was changed has been put back.
    #[error("{what}; everything is as it was before: {undone} change(s) of this run were put back")]
    PutBack {
        /// What failed.
        what: String,
        /// How many.
        undone: usize,
    },
    /// Some of it could not be put back.
    #[error(
        "{what}\nNOT as before (file, what it should be, why not):\n  {0}\nwhat was there is kept in {1}: run `fanwire tune --revert --state {1}` again once that is \
         mended, or write these by hand", left.join("\n  "), state.display()
    )]
    Left {
        /// What failed.
        what: String,
        /// What is not as it was.
        left: Vec<String>,
        /// Where what was there is kept.
        state: PathBuf,
    },
}

/// Writes a value into a setting's file; a test's may fail.
type Write = dyn Fn(&Root, &str, &str) -> io::Result<()>;

/// Applies and reverts.
pub struct Tuner {
    root: Root,
    state: PathBuf,
    write: Box<Write>,
}

impl Tuner {
    /// On this machine, with its state in this file.
    pub fn new(root: Root, state: PathBuf) -> Tuner {
        Tuner { root, state, write: Box::new(Root::write) }
    }

    /// Does what is planned, or nothing.
    ///
    /// # Errors
    /// [`TuneError`] says what was and was not changed.
    pub fn apply(&self, plan: &Plan) -> Result<Outcome, TuneError> {
        let nothing = |what: String| TuneError::Nothing(what);
        let _lock = self.lock().map_err(nothing)?;
        let earlier = self.load().map_err(nothing)?;
        let here = self.here();
        let mut state = match &earlier {
            Some(earlier) => self.continued(earlier, &here).map_err(nothing)?,
            None => here,
        };
        let mut steps = Vec::new();
        for change in &plan.changes {
            let before = self.root.read(&change.path);
            let before = before.map_err(|e| nothing(format!("{} could not be read: {}", change.name(), e.remedy())))?;
            steps.push(Saved {
                path: change.path.clone(),
                before: Some(before),
                after: change.after.clone(),
                is_file: false,
            });
        }
        if let Some((path, text)) = &plan.file {
            let path = path
                .to_str()
                .ok_or_else(|| nothing(format!("{} is not UTF-8: choose another name", path.display())))?;
            let before = match self.root.read(path) {
                Ok(before) => Some(before),
                Err(Unseen::Missing) => None,
                Err(e) => return Err(nothing(format!("{path} could not be read: {}", e.remedy()))),
            };
            steps.push(Saved { path: path.to_owned(), before, after: text.clone(), is_file: true });
        }
        for step in &steps {
            match state.saved.iter_mut().find(|saved| saved.path == step.path) {
                Some(saved) => saved.after.clone_from(&step.after),
                None => state.saved.push(step.clone()),
            }
        }
        self.store(&state).map_err(|e| nothing(self.refused(&e)))?;
        let mut outcome = Outcome::default();
        for (index, step) in steps.iter().enumerate() {
            if let Err(error) = self.set(step, Some(&step.after)) {
                let what = format!("{} could not be set to {:?}: {}", name(&step.path), step.shown(), remedy(&error));
                return Err(self.undo(what, &steps[..=index], earlier.as_ref()));
            }
            outcome.done.push(match &step.before {
                _ if step.is_file => format!("{} written", step.path),
                before => {
                    format!("{}: {} → {}", name(&step.path), line(before.as_deref().unwrap_or_default()), step.after)
                }
            });
        }
        let state = self.state.display();
        outcome.remarks.push(format!("to put back what was there before: sudo fanwire tune --revert --state {state}"));
        Ok(outcome)
    }

    /// Puts back everything that was there before the first apply, and forgets it.
    ///
    /// # Errors
    /// [`TuneError`]; what could not be put back stays in the state.
    pub fn revert(&self) -> Result<Outcome, TuneError> {
        let _lock = self.lock().map_err(TuneError::Nothing)?;
        let Some(state) = self.load().map_err(TuneError::Nothing)? else {
            let what =
                format!("there is no {}, so nothing was applied (or --state names another file)", self.state.display());
            return Err(TuneError::Nothing(what));
        };
        let here = self.here();
        self.same_namespace(&state, &here).map_err(TuneError::Nothing)?;
        let mut outcome = Outcome::default();
        let (mut left, mut why_left) = (Vec::new(), Vec::new());
        for saved in state.saved.iter().rev() {
            if saved.is_gone_with_the_boot(&state, &here) {
                outcome.remarks.push(format!("{}: the reboot has put it back already", name(&saved.path)));
                continue;
            }
            let found = self.root.read(&saved.path);
            if let (Err(Unseen::Missing), false) = (&found, saved.is_file) {
                outcome
                    .remarks
                    .push(format!("{} is gone (its module or card), and its change with it", name(&saved.path)));
                continue;
            }
            if found.as_ref().is_ok_and(|found| line(found) != line(&saved.after)) && state.boot == here.boot {
                outcome.remarks.push(format!("{} had been changed by somebody since", name(&saved.path)));
            }
            match self.set(saved, saved.before.as_deref()) {
                Ok(()) if saved.is_file && saved.before.is_none() => {
                    outcome.done.push(format!("{} removed", saved.path))
                }
                Ok(()) if saved.is_file => outcome.done.push(format!("{} as it was", saved.path)),
                Ok(()) => outcome.done.push(format!("{}: back to {}", name(&saved.path), saved.was())),
                Err(error) => {
                    why_left.push(format!("{}, {:?}: {}", saved.path, saved.was(), remedy(&error)));
                    left.push(saved.clone());
                }
            }
        }
        left.reverse();
        if left.is_empty() {
            // The last step: until here a second attempt finds everything.
            fs::remove_file(&self.state).map_err(|e| TuneError::Left {
                what: "everything was put back, but its state could not be removed".into(),
                left: vec![format!("{}: {e}: remove it", self.state.display())],
                state: self.state.clone(),
            })?;
            return Ok(outcome);
        }
        let stored = self.store(&State { saved: left, ..state });
        why_left.extend(stored.err().map(|e| format!("{}: {e}; it still names all settings", self.state.display())));
        let what = format!("{} setting(s) were put back, {} could not be", outcome.done.len(), why_left.len());
        Err(TuneError::Left { what, left: why_left, state: self.state.clone() })
    }

    /// Puts back what this run has changed, the last first, and the state as it was.
    fn undo(&self, what: String, steps: &[Saved], earlier: Option<&State>) -> TuneError {
        let mut left = Vec::new();
        for step in steps.iter().rev() {
            let is_as_it_was = || self.root.read(&step.path).ok() == step.before;
            if !is_as_it_was()
                && let Err(error) = self.set(step, step.before.as_deref())
            {
                left.push(format!("{}, {:?}: {}", step.path, step.was(), remedy(&error)));
            }
        }
        if !left.is_empty() {
            return TuneError::Left { what, left, state: self.state.clone() };
        }
        let restored = match earlier {
            Some(earlier) => self.store(earlier),
            None => fs::remove_file(&self.state),
        };
        match restored {
            Ok(()) => TuneError::PutBack { what, undone: steps.len() - 1 },
            Err(e) => {
                let left = vec![format!("{}: {e}; the settings themselves are as before", self.state.display())];
                TuneError::Left { what, left, state: self.state.clone() }
            }
        }
    }

    /// Writes `value`, and looks whether it is what is there then. `None` removes a file.
    fn set(&self, saved: &Saved, value: Option<&str>) -> io::Result<()> {
        match value {
            None => fs::remove_file(self.root.path(&saved.path)),
            Some(text) if saved.is_file => replace(&self.root.path(&saved.path), text),
            Some(value) => {
                (self.write)(&self.root, &saved.path, value)?;
                let kept = self.root.read(&saved.path).map_err(|e| io::Error::other(e.remedy()))?;
                let same = line(&kept) == line(value)
                    || super::root::unmasked(&kept).is_some_and(|k| Some(k) == super::root::unmasked(value));
                if same { Ok(()) } else { Err(io::Error::other(format!("the kernel made {:?} of it", line(&kept)))) }
            }
        }
    }

    /// Whoever tunes at the same time waits outside.
    fn lock(&self) -> Result<Lock, String> {
        let folder = self.state.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = if folder.exists() { Ok(()) } else { fs::create_dir_all(folder) };
        let folder = made.and_then(|()| File::open(folder)).map_err(|e| self.refused(&e))?;
        folder.try_lock().map_err(|_| "another `fanwire tune` is at work: wait for it".to_owned())?;
        Ok(Lock(folder))
    }

    fn refused(&self, error: &io::Error) -> String {
        format!("{}, which keeps what was there, could not be written: {}", self.state.display(), remedy(error))
    }

    fn load(&self) -> Result<Option<State>, String> {
        let file = self.state.display();
        let unusable = |why: &dyn std::fmt::Display| {
            format!("{file} can't be used: {why}; if you know what was there before, move it away, else mend it")
        };
        let length = match fs::metadata(&self.state) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{file} can't be read: {}", remedy(&e))),
        };
        if length > STATE_BYTES_MAX {
            return Err(unusable(&"it is far too large"));
        }
        let text = fs::read_to_string(&self.state).map_err(|e| format!("{file} can't be read: {}", remedy(&e)))?;
        let state: State = serde_json::from_str(&text).map_err(|e| unusable(&e))?;
        if state.format != FORMAT {
            return Err(unusable(&format!("it is of format {}, and this version writes {FORMAT}", state.format)));
        }
        Ok(Some(state))
    }

    fn store(&self, state: &State) -> io::Result<()> {
        let text = serde_json::to_string_pretty(state).map_err(io::Error::other)?;
        replace(&self.state, &(text + "\n"))
    }

    /// A state of now, in which nothing is saved yet.
    fn here(&self) -> State {
        let boot = self.root.text("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = self.root.link_name("/proc/self/ns/net").unwrap_or_default();
        State { format: FORMAT, boot, namespace, saved: Vec::new() }
    }

    /// The earlier state, as what an apply of now adds to.
    fn continued(&self, earlier: &State, here: &State) -> Result<State, String> {
        self.same_namespace(earlier, here)?;
        let kept = earlier.saved.iter().filter(|saved| !saved.is_gone_with_the_boot(earlier, here)).cloned();
        Ok(State { saved: kept.collect(), ..here.clone() })
    }

    fn same_namespace(&self, state: &State, here: &State) -> Result<(), String> {
        if state.boot == here.boot && state.namespace != here.namespace {
            return Err(format!(
                "{} is of another network namespace ({}, and this is {}): run it there, or name another file by --state",
                self.state.display(),
                state.namespace,
                here.namespace
            ));
        }
        Ok(())
    }
}

/// A locked folder. It is unlocked, not only closed: a process that is just being started, and has not reached its program yet, holds
/// the file as well.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock(); // It ends with the file anyway.
    }
}

impl Saved {
    /// What is written for a setting; a file's text is not for one line.
    fn shown(&self) -> &str {
        if self.is_file { "its new text" } else { &self.after }
    }

    /// What it was, on one line.
    fn was(&self) -> String {
        match &self.before {
            None => "not there".into(),
            Some(_) if self.is_file => "its text in the state".into(),
            Some(before) => line(before),
        }
    }

    /// Interrupts and queues get new numbers and their defaults at each boot.
    fn is_gone_with_the_boot(&self, state: &State, here: &State) -> bool {
        state.boot != here.boot && (self.path.starts_with("/proc/irq/") || self.path.starts_with("/sys/"))
    }
}

/// With single blanks and none around it.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the system said, and who must do what.
fn remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}: run it as root (sudo), outside a container"),
        io::ErrorKind::ReadOnlyFilesystem => format!("{error}: the container has it read-only, so run it on the host"),
        _ if error.raw_os_error() == Some(libc::EIO) => {
            format!("{error}: the driver places this interrupt itself; leave --nic out")
        }
        _ => error.to_string(),
    }
}

/// The whole file or the old one, also when the power goes in between.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().ok_or_else(|| io::Error::other("it has no file name"))?.to_owned();
    name.push(".new");
    let new = folder.join(name);
    let written =
        File::create(&new).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    let renamed = written.and_then(|()| fs::rename(&new, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&new); // What failed is said; this was only tidying.
    }
    renamed.and_then(|()| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::super::laid::{Laid, bare_metal};
    use super::*;
    use crate::config::Config;
    use std::cell::Cell;

    const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
    const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

    fn plan(laid: &Laid, connections: u64) -> Plan {
        let nic = Nic::read(&laid.root(), "eno1");
        Plan::new(&laid.root(), &Demand::new(connections, &Config::default()), nic.as_ref(), &[0, 1, 2, 3], None)
    }

    fn tuner(laid: &Laid) -> Tuner {
        Tuner::new(laid.root(), laid.root().path("/var/lib/fanwire/tune.json"))
    }

    fn read(laid: &Laid, path: &str) -> String {
        laid.root().read(path).unwrap()
    }

    #[test]
    fn a_plan_changes_what_is_too_low_and_nothing_else() {
        let laid = bare_metal("plan");
        let before = laid.contents();
        let plan = Plan::new(&laid.root(), &Demand::new(1_000_000, &Config::default()), None, &[], None);
        let names: Vec<_> = plan.changes.iter().map(Change::name).collect();
        assert_eq!(
            names,
            [
                "net.core.somaxconn",
                "net.ipv4.tcp_max_syn_backlog",
                "net.ipv4.ip_local_port_range",
                "net.ipv4.tcp_mem",
                "net.ipv4.tcp_max_orphans",
                "net.ipv4.tcp_max_tw_buckets",
            ]
        );
        assert_eq!(laid.contents(), before, "a plan only reads");
        assert!(
            Plan::new(&laid.root(), &Demand::new(1000, &Config::default()), None, &[], None).changes.len()
                < names.len()
        );
    }

    #[test]
    fn applied_and_reverted_every_byte_is_as_before() {
        let laid = bare_metal("round");
        let before = laid.contents();
        let outcome = tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap();
        assert!(outcome.done.contains(&"net.core.somaxconn: 4096 → 65535".to_owned()), "{outcome:?}");
        assert_eq!(read(&laid, SOMAXCONN), "65535");
        assert!(plan(&laid, 1_000_000).is_empty(), "what was applied is what was wanted");
        let outcome = tuner(&laid).revert().unwrap();
        assert!(outcome.done.contains(&"net.core.somaxconn: back to 4096".to_owned()), "{outcome:?}");
        assert_eq!(laid.contents(), before);
        let error = tuner(&laid).revert().unwrap_err().to_string();
        assert!(error.contains("nothing was applied"), "{error}");
    }

    #[test]
    fn applied_twice_the_first_state_is_kept() {
        let laid = bare_metal("twice");
        let before = laid.contents();
        tuner(&laid).apply(&plan(&laid, 100_000)).unwrap();
        tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap();
        assert_eq!(read(&laid, SOMAXCONN), "65535");
        tuner(&laid).revert().unwrap();
        assert_eq!(laid.contents(), before);
    }

    #[test]
    fn the_state_is_there_before_the_first_change() {
        let laid = bare_metal("first");
        let state = laid.root().path("/var/lib/fanwire/tune.json");
        let seen = std::rc::Rc::new(Cell::new(false));
        let look = seen.clone();
        let write = move |root: &Root, path: &str, value: &str| {
            look.set(fs::read_to_string(&state).is_ok_and(|text| text.contains(SOMAXCONN) && text.contains("4096\\n")));
            root.write(path, value)
        };
        Tuner { write: Box::new(write), ..tuner(&laid) }.apply(&plan(&laid, 1_000_000)).unwrap();
        assert!(seen.get());
    }

    /// Fails from the `n`th write on; `forgiving`: only that one.
    fn failing(laid: &Laid, n: usize, forgiving: bool) -> Tuner {
        let writes = Cell::new(0);
        let write = move |root: &Root, path: &str, value: &str| {
            writes.set(writes.get() + 1);
            let fails = if forgiving { writes.get() == n } else { writes.get() >= n };
            if fails { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { root.write(path, value) }
        };
        Tuner { write: Box::new(write), ..tuner(laid) }
    }

    #[test]
    fn one_that_fails_puts_back_all_before_it() {
        let laid = bare_metal("fails");
        let before = laid.contents();
        for n in 1..=plan(&laid, 1_000_000).changes.len() {
            let error = failing(&laid, n, true).apply(&plan(&laid, 1_000_000)).unwrap_err();
            assert!(matches!(error, TuneError::PutBack { undone, .. } if undone == n - 1), "{error}");
            assert!(error.to_string().contains("everything is as it was before"), "{error}");
            assert_eq!(laid.contents(), before);
        }
    }

    #[test]
    fn one_that_fails_in_a_second_run_leaves_the_first_and_its_state() {
        let laid = bare_metal("second");
        let before = laid.contents();
        tuner(&laid).apply(&plan(&laid, 100_000)).unwrap();
        let first = laid.contents();
        failing(&laid, 2, true).apply(&plan(&laid, 1_000_000)).unwrap_err();
        assert_eq!(laid.contents(), first);
        tuner(&laid).revert().unwrap();
        assert_eq!(laid.contents(), before);
    }

    #[test]
    fn what_can_not_be_put_back_is_named_and_stays_in_the_state() {
        let laid = bare_metal("left");
        let before = laid.contents();
        let error = failing(&laid, 3, false).apply(&plan(&laid, 1_000_000)).unwrap_err();
        let TuneError::Left { left, .. } = &error else { panic!("{error}") };
        assert_eq!(left.len(), 2, "{left:?}");
        let text = error.to_string();
        assert!(text.contains(SOMAXCONN) && text.contains("\"4096\"") && text.contains("--revert --state "), "{text}");
        tuner(&laid).revert().unwrap();
        assert_eq!(laid.contents(), before);
    }

    #[test]
    fn a_revert_that_fails_half_way_can_be_repeated() {
        let laid = bare_metal("half");
        let before = laid.contents();
        tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap();
        let error = failing(&laid, 3, false).revert().unwrap_err().to_string();
        assert!(error.starts_with("2 setting(s) were put back") && error.contains("NOT as before"), "{error}");
        tuner(&laid).revert().unwrap();
        assert_eq!(laid.contents(), before);
    }

    #[test]
    fn a_value_that_the_kernel_makes_another_of_is_a_failure() {
        let laid = bare_metal("other").without(SOMAXCONN).link(SOMAXCONN, "/dev/null");
        let mut plan = plan(&laid, 1_000_000);
        plan.changes.push(Change::new(SOMAXCONN.into(), "", "65535".into(), "for a test".into()));
        let error = tuner(&laid).apply(&plan).unwrap_err().to_string();
        assert!(
            error.contains("net.core.somaxconn could not be set") && error.contains("the kernel made \"\" of it"),
            "{error}"
        );
    }

    #[test]
    fn a_file_for_the_next_boots_is_put_back_or_removed() {
        let laid = bare_metal("file");
        let path = laid.root().path("/etc/sysctl.d/90-fanwire.conf");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for before in [None, Some("# by hand\n")] {
            if let Some(text) = before {
                fs::write(&path, text).unwrap();
            }
            let file = Path::new("/etc/sysctl.d/90-fanwire.conf");
            let plan = Plan::new(&laid.root(), &Demand::new(1_000_000, &Config::default()), None, &[], Some(file));
            tuner(&laid).apply(&plan).unwrap();
            assert!(fs::read_to_string(&path).unwrap().contains("\nnet.core.somaxconn = 65535\n"));
            tuner(&laid).revert().unwrap();
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
        }
    }

    #[test]
    fn a_state_that_is_damaged_of_another_format_or_namespace_changes_nothing() {
        let laid = bare_metal("damaged").link("/proc/self/ns/net", "net:[2]");
        let state = |text: &str| {
            fs::create_dir_all(laid.root().path("/var/lib/fanwire")).unwrap();
            fs::write(laid.root().path("/var/lib/fanwire/tune.json"), text).unwrap();
        };
        let boot = "11111111-2222-3333-4444-555555555555";
        for (text, part) in [
            ("half a st".to_owned(), "move it away"),
            (r#"{"format":9,"boot":"","namespace":"","saved":[]}"#.to_owned(), "format 9"),
            (
                format!(r#"{{"format":1,"boot":"{boot}","namespace":"net:[1]","saved":[]}}"#),
                "another network namespace (net:[1]",
            ),
        ] {
            state(&text);
            for error in [tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap_err(), tuner(&laid).revert().unwrap_err()]
            {
                let error = error.to_string();
                assert!(error.starts_with("nothing was changed: ") && error.contains(part), "{error}");
            }
            assert_eq!(read(&laid, SOMAXCONN), "4096\n");
        }
    }

    #[test]
    fn after_a_reboot_interrupts_are_not_touched_and_sysctls_are_put_back() {
        let laid = bare_metal("reboot");
        tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap();
        let laid =
            laid.file("/proc/sys/kernel/random/boot_id", "another\n").file("/proc/irq/40/smp_affinity_list", "2\n");
        let outcome = tuner(&laid).revert().unwrap();
        assert!(outcome.remarks.iter().any(|r| r.contains("/proc/irq/40") && r.contains("reboot")), "{outcome:?}");
        assert_eq!(read(&laid, "/proc/irq/40/smp_affinity_list"), "2\n");
        assert_eq!(read(&laid, PORTS), "32768\t60999\n");
    }

    #[test]
    fn what_somebody_changed_meanwhile_is_said() {
        let laid = bare_metal("meanwhile");
        tuner(&laid).apply(&plan(&laid, 1_000_000)).unwrap();
        let laid = laid.file(SOMAXCONN, "30000\n");
        let outcome = tuner(&laid).revert().unwrap();
        assert_eq!(outcome.remarks, ["net.core.somaxconn had been changed by somebody since"]);
        assert_eq!(read(&laid, SOMAXCONN), "4096\n");
    }

    #[test]
    fn what_only_the_host_may_set_is_left_alone_and_said() {
        let laid = bare_metal("host");
        let file = laid.root().path(SOMAXCONN);
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let plan = plan(&laid, 1_000_000);
        assert!(!plan.changes.iter().any(|change| change.path == SOMAXCONN));
        assert_eq!(
            plan.left_alone,
            ["net.core.somaxconn is the host's: run there sudo sysctl -w net.core.somaxconn='65535'"]
        );
    }

    #[test]
    fn two_at_once_do_not_mix() {
        let laid = bare_metal("lock");
        let tuner = tuner(&laid);
        let _lock = tuner.lock().unwrap();
        let error = tuner.apply(&plan(&laid, 1_000_000)).unwrap_err().to_string();
        assert!(error.contains("another `fanwire tune`"), "{error}");
        assert_eq!(read(&laid, SOMAXCONN), "4096\n");
    }
}
