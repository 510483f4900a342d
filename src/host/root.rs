//! Reads `/proc` and `/sys` below a directory: `/` for this machine, any other for one that a test has laid out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Longest file that is read; `/proc/interrupts` of a large machine has about a megabyte.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 65_536;

/// Why something was not seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// It does not exist on this kernel, in this container or without this module.
    Missing,
    /// It exists, and this user may not read it.
    Denied,
    /// Something else, in the system's words.
    Failed(String),
}

impl Unseen {
    /// What whoever asked has to do to see it.
    pub fn remedy(&self) -> String {
        match self {
            Unseen::Missing => "mount /proc and /sys where this runs, or look on the host".into(),
            Unseen::Denied => "run this as root".into(),
            Unseen::Failed(error) => format!("read it by hand: {error}"),
        }
    }
}

impl From<io::Error> for Unseen {
    fn from(error: io::Error) -> Unseen {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Unseen::Missing,
            io::ErrorKind::PermissionDenied => Unseen::Denied,
            _ => Unseen::Failed(error.to_string()),
        }
    }
}

/// The directory that holds `proc` and `sys`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Root {
        Root::at("/")
    }
}

impl Root {
    /// At this directory.
    pub fn at(directory: impl Into<PathBuf>) -> Root {
        Root(directory.into())
    }

    /// Where `path`, absolute on the machine, lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A whole file, as it is.
    ///
    /// # Errors
    /// [`Unseen`].
    pub fn read(&self, path: &str) -> Result<String, Unseen> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its text without blanks around it.
    ///
    /// # Errors
    /// [`Unseen`].
    pub fn text(&self, path: &str) -> Result<String, Unseen> {
        self.read(path).map(|text| text.trim().to_owned())
    }

    /// Its text as a number; `None` if it can't be read or is none.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.text(path).ok()?.parse().ok()
    }

    /// The names in a directory, sorted as people count (`rx-2` before `rx-10`); none if it can't be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.take(ENTRIES_MAX).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| {
            let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            let (stem, number) = name.split_at(name.len() - digits);
            (stem.to_owned(), number.parse::<u64>().unwrap_or(0), name.clone())
        });
        names
    }

    /// Whether it is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Whether anybody may write it; root, too, may not write what nobody may in `/proc`.
    pub fn is_writable(&self, path: &str) -> bool {
        fs::metadata(self.path(path)).is_ok_and(|metadata| metadata.permissions().mode() & 0o222 != 0)
    }

    /// The last part of what a link points at, such as a device's name.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(Path::new(&target).file_name()?.to_string_lossy().into_owned())
    }

    /// Writes `value` into a file that is there, as `/proc` and `/sys` are written: in one write(2).
    ///
    /// # Errors
    /// The system's own.
    pub fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(path))?;
        io::Write::write_all(&mut file, value.as_bytes())
    }
}

/// A list of numbers as the kernel writes them: `0-3,8`. What is not one is left out; at most [`CPUS_MAX`] of them.
pub fn list(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            numbers.extend((first..=last).take(CPUS_MAX.saturating_sub(numbers.len())));
        }
    }
    numbers
}

/// The kernel's own bound (NR_CPUS).
pub const CPUS_MAX: usize = 8192;

/// Numbers as [`list`] reads them.
pub fn listed(numbers: &[u32]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let run = (first..).zip(rest).take_while(|(expected, number)| expected == *number).count();
        let last = rest[run - 1];
        parts.push(if run == 1 { first.to_string() } else { format!("{first}-{last}") });
        rest = &rest[run..];
    }
    parts.join(",")
}

/// A mask of CPUs as `/sys` writes it: words of 32 bits in hexadecimal, the highest first.
pub fn mask(cpus: &[u32]) -> String {
    let highest = cpus.iter().max().map_or(0, |cpu| cpu / 32) as usize;
    let mut words = vec![0u32; highest + 1];
    for cpu in cpus {
        words[(cpu / 32) as usize] |= 1 << (cpu % 32);
    }
    words.iter().rev().map(|word| format!("{word:08x}")).collect::<Vec<_>>().join(",")
}

/// The CPUs of a mask; `None` if it is no mask.
pub fn unmasked(text: &str) -> Option<Vec<u32>> {
    let words: Vec<u32> = text.trim().split(',').map(|w| u32::from_str_radix(w, 16).ok()).collect::<Option<_>>()?;
    if words.len() > CPUS_MAX / 32 {
        return None;
    }
    let bits = |(index, word): (usize, &u32)| {
        let word = *word;
        (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index as u32 * 32 + bit)
    };
    Some(words.iter().rev().enumerate().flat_map(bits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_written_as_the_kernel_does() {
        assert_eq!(list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert!(list("\n").is_empty());
        assert_eq!(list("0-4000000000").len(), CPUS_MAX);
        assert_eq!(listed(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(listed(&[]), "");
    }

    #[test]
    fn masks_have_the_highest_word_first() {
        assert_eq!(mask(&[0, 1]), "00000003");
        assert_eq!(mask(&[1, 33]), "00000002,00000002");
        assert_eq!(unmasked("00000002,00000002\n"), Some(vec![1, 33]));
        assert_eq!(unmasked("3"), Some(vec![0, 1]));
        assert_eq!(unmasked("none"), None);
    }

    #[test]
    fn names_come_as_people_count() {
        let directory = std::env::temp_dir().join(format!("fanwire-root-{}", std::process::id()));
        for name in ["rx-10", "rx-2", "tx-0", "rx-0"] {
            fs::create_dir_all(directory.join("queues").join(name)).unwrap();
        }
        assert_eq!(Root::at(&directory).names("/queues"), ["rx-0", "rx-2", "rx-10", "tx-0"]);
        assert_eq!(Root::at(&directory).read("/none"), Err(Unseen::Missing));
        fs::remove_dir_all(directory).unwrap();
    }
}
