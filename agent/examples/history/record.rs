//! What clients asked of the cluster and what they were answered: a file of lines, in the order of one clock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blixard_core::command::Presence;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A register: a VM of the command line's that no host has room for, so nothing but clients changes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Value {
    /// What no other write writes.
    pub content: u64,
    /// Whether it is to run.
    pub running: bool,
}

/// What a register holds; nothing where there is no VM of its name.
pub type Cell = Option<Value>;

/// What can be done to a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Change {
    Put { value: Value, must: Option<Presence> },
    SetRunning { running: bool },
    Remove,
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ask {
    Change {
        register: String,
        change: Change,
    },
    /// All of them at once.
    Read {
        registers: Vec<String>,
    },
}

/// What it is answered. No answer: a change may have been carried out, or may yet be, or never.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Carried out, as this log entry.
    Done { index: u64 },
    /// Refused for what the register held; as this log entry, where the answer names one.
    Refused { index: Option<u64> },
    /// What the registers held, and the last log entry that the state held then, where the answer names it.
    Cells { index: Option<u64>, cells: Vec<Cell> },
    /// It was not carried out and never will be.
    Nothing,
}

/// A line of the file; times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Serialize, Deserialize)]
enum Line {
    Asked { id: u64, client: u32, at: u64, ask: Ask },
    Answered { id: u64, at: u64, answer: Answer },
}

/// A client's question with its answers, of which there is more than one where it was asked again.
#[derive(Clone, Debug)]
pub struct Operation {
    pub id: u64,
    pub client: u32,
    pub called: u64,
    /// When the first answer came.
    pub returned: Option<u64>,
    pub ask: Ask,
    pub answers: Vec<Answer>,
}

impl Change {
    /// What the register holds afterwards; nothing where the change is refused.
    pub fn carry_out(self, before: Cell) -> Option<Cell> {
        match self {
            Self::Put { must: Some(Presence::Absent), .. } if before.is_some() => None,
            Self::Put { must: Some(Presence::Present), .. } if before.is_none() => None,
            Self::Put { value, .. } => Some(Some(value)),
            Self::SetRunning { running } => before.map(|value| Some(Value { running, ..value })),
            Self::Remove => before.map(|_| None),
        }
    }
}

impl Operation {
    pub fn answer(&self) -> Option<&Answer> {
        self.answers.first()
    }

    /// The log entry that the answer names.
    pub fn index(&self) -> Option<u64> {
        match self.answer()? {
            Answer::Done { index } => Some(*index),
            Answer::Refused { index } | Answer::Cells { index, .. } => *index,
            Answer::Nothing => None,
        }
    }

    /// The registers that it is about.
    pub fn registers(&self) -> &[String] {
        match &self.ask {
            Ask::Change { register, .. } => std::slice::from_ref(register),
            Ask::Read { registers } => registers,
        }
    }

    /// The same, but of a read only what is about this register.
    pub fn narrowed(&self, register: &str) -> Self {
        let mut narrow = self.clone();
        let at = self.registers().iter().position(|own| own == register);
        if let (Some(at), Ask::Read { registers }) = (at, &mut narrow.ask) {
            *registers = vec![register.to_owned()];
            for answer in &mut narrow.answers {
                if let Answer::Cells { cells, .. } = answer {
                    *cells = cells.get(at).copied().into_iter().collect();
                }
            }
        }
        narrow
    }

    /// What it did to this register, or saw in it.
    pub fn in_register(&self, register: &str) -> Option<Seen> {
        let at = self.registers().iter().position(|own| own == register)?;
        match (&self.ask, self.answer()) {
            (Ask::Change { change, .. }, Some(Answer::Done { .. })) => Some(Seen::Changed(*change)),
            (Ask::Change { change, .. }, Some(Answer::Refused { .. })) => Some(Seen::Refused(*change)),
            (Ask::Change { change, .. }, None) => Some(Seen::Perhaps(*change)),
            (Ask::Read { .. }, Some(Answer::Cells { cells, .. })) => Some(Seen::Held(*cells.get(at)?)),
            _ => None,
        }
    }
}

/// What is known of one register by one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    Changed(Change),
    Refused(Change),
    /// It was changed, or not, or not yet.
    Perhaps(Change),
    Held(Cell),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |nanos: u64| format!("{}.{:03}", nanos / 1_000_000, nanos / 1_000 % 1_000);
        let end = self.returned.map_or_else(|| "…".to_owned(), millis);
        write!(f, "[{} – {end} ms] client {}: ", millis(self.called), self.client)?;
        match (&self.ask, self.answer()) {
            (Ask::Read { registers }, Some(Answer::Cells { index, cells })) => {
                let held = registers.iter().zip(cells).map(|(register, cell)| format!("{register} = {}", Shown(*cell)));
                write!(f, "read {}", held.collect::<Vec<_>>().join(", "))?;
                index.map_or(Ok(()), |index| write!(f, ", as of entry {index}"))
            }
            (Ask::Read { registers }, _) => write!(f, "read {}: no answer", registers.join(", ")),
            (Ask::Change { register, change }, answer) => {
                write!(f, "{register}: {}: ", Doing(*change))?;
                match answer {
                    Some(Answer::Done { index }) => write!(f, "done as entry {index}"),
                    Some(Answer::Refused { index: Some(index) }) => write!(f, "refused as entry {index}"),
                    Some(Answer::Refused { index: None }) => write!(f, "refused"),
                    Some(Answer::Nothing) => write!(f, "not done"),
                    Some(Answer::Cells { .. }) | None => write!(f, "outcome unknown"),
                }
            }
        }
    }
}

/// A cell, for people.
pub struct Shown(pub Cell);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "nothing"),
            Some(Value { content, running }) => write!(f, "{content} {}", if running { "started" } else { "stopped" }),
        }
    }
}

struct Doing(Change);

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Change::Put { value, must: Some(Presence::Absent) } => write!(f, "make {}", Shown(Some(value))),
            Change::Put { value, must: Some(Presence::Present) } => write!(f, "replace by {}", Shown(Some(value))),
            Change::Put { value, must: None } => write!(f, "put {}", Shown(Some(value))),
            Change::SetRunning { running: true } => write!(f, "start"),
            Change::SetRunning { running: false } => write!(f, "stop"),
            Change::Remove => write!(f, "remove"),
        }
    }
}

/// A history that is being written.
pub struct Recorder {
    file: Mutex<File>,
    next: AtomicU64,
}

impl Recorder {
    /// Goes on with the file, whose operations have ids below `next`.
    pub fn append(path: &Path, next: u64) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { file: Mutex::new(file), next: AtomicU64::new(next) })
    }

    /// An id that no other operation has.
    pub fn draw(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// To be called before the question leaves.
    pub fn asked(&self, id: u64, client: u32, ask: &Ask) {
        self.write(&Line::Asked { id, client, at: now(), ask: ask.clone() });
    }

    /// To be called once the answer is here.
    pub fn answered(&self, id: u64, answer: Answer) {
        self.write(&Line::Answered { id, at: now(), answer });
    }

    fn write(&self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("a line has only text and numbers");
        text.push('\n');
        let mut file = self.file.lock().expect("nothing panics while it holds this lock");
        file.write_all(text.as_bytes()).expect("the history's disk has room");
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.expect("it began at 0") * 1_000_000_000 + nanos.expect("it is below a second")
}

/// The operations of a history, as they were called.
///
/// # Errors
/// What can't be read, for people.
pub fn read(path: &Path) -> Result<Vec<Operation>, String> {
    let failed = |what: String| format!("cannot read the history {}: {what}", path.display());
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut operations = BTreeMap::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|error| failed(error.to_string()))?;
        let line = serde_json::from_str(&line).map_err(|error| failed(format!("line {number}: {error}")))?;
        match line {
            Line::Asked { id, client, at, ask } => {
                operations.insert(id, Operation { id, client, called: at, returned: None, ask, answers: Vec::new() });
            }
            Line::Answered { id, at, answer } => {
                let operation: &mut Operation =
                    operations.get_mut(&id).ok_or_else(|| failed(format!("line {number} answers nothing")))?;
                operation.returned.get_or_insert(at);
                operation.answers.push(answer);
            }
        }
    }
    let mut operations: Vec<_> = operations.into_values().collect();
    operations.sort_by_key(|operation| operation.called);
    Ok(operations)
}
