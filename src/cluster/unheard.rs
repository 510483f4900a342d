//! Who is known and not heard, for `/readyz`: nobody else notices. The node is well, its other links are, and its subscribers miss what that
//! one accepts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long a source is not heard before that is worth a note: one that has died is no member any more by then.
const NOTED_AFTER: Duration = Duration::from_secs(10);
/// How many of them a note names.
const NAMED_MAX: usize = 3;

/// The sources that are known and not heard: why, and since when. Bounded as the view is.
#[derive(Clone, Default)]
pub(super) struct Unheard(Arc<Mutex<BTreeMap<String, (Instant, String)>>>);

impl Unheard {
    fn sources(&self) -> MutexGuard<'_, BTreeMap<String, (Instant, String)>> {
        // Each of its few lines leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, now: Instant, id: &str, why: String) {
        let mut sources = self.sources();
        sources.entry(id.to_owned()).or_insert_with(|| (now, String::new())).1 = why;
    }

    pub(super) fn remove(&self, id: &str) {
        self.sources().remove(id);
    }

    /// A sentence, if some of them have not been heard for long.
    pub(super) fn note(&self, now: Instant) -> Option<String> {
        let sources = self.sources();
        let long = |(since, why): &(Instant, String)| {
            let silent = now.duration_since(*since);
            (silent >= NOTED_AFTER).then(|| format!("{why}, for {} s", silent.as_secs()))
        };
        let mut named: Vec<_> = sources.values().filter_map(long).collect();
        let count = named.len();
        named.truncate(NAMED_MAX);
        let more = if count > NAMED_MAX { ", and others" } else { "" };
        let said = format!("what {count} of the others accept does not come here: {}{more}", named.join("; "));
        (count > 0).then_some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_heard_for_long_is_said_until_it_is() {
        let (unheard, start) = (Unheard::default(), Instant::now());
        unheard.add(start, "7f", "b at h:1 (refused)".into());
        assert_eq!(unheard.note(start + NOTED_AFTER / 2), None, "it may come back, or be gone");
        unheard.add(start + NOTED_AFTER, "7f", "b at h:1 (silent)".into());
        let note = unheard.note(start + NOTED_AFTER).unwrap();
        assert_eq!(note, "what 1 of the others accept does not come here: b at h:1 (silent), for 10 s");
        (0..4).for_each(|n| unheard.add(start, &n.to_string(), n.to_string()));
        let note = unheard.note(start + NOTED_AFTER).unwrap();
        assert!(note.starts_with("what 5 of the others") && note.ends_with("2, for 10 s, and others"), "{note}");
        ["0", "1", "2", "3", "7f"].iter().for_each(|id| unheard.remove(id));
        assert_eq!(unheard.note(start + NOTED_AFTER), None);
    }
}
