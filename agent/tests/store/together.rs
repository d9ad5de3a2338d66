//! A server's log and store on one power: whenever it goes, what was acknowledged is there, and the two fit each other.

use blixard::log::Log;
use blixard::store::Store;
use blixard_core::command::{Command, Entry, NewNode, Reply};
use blixard_core::driver::{Checkpoint, Content, Driver, Membership, Position, Recovered, Settings, Write};
use blixard_core::manifest::VmSpec;
use blixard_core::state::{Change, Loading, State, Table};
use blixard_core::types::{
    ClusterId, Failover, Hash, Hypervisor, Labels, Level, Priority, RaftId, RestartPolicy, Term, Timestamp,
};

use super::pages::Place;
use super::power::{Power, Random};

const SERVER: RaftId = RaftId(1);
/// Small, so that segments come and go.
const SEGMENT: u64 = 1_500;
/// Commands that each history has, apart from the first.
const COMMANDS: u64 = 40;
const CHECKPOINT_EVERY: u64 = 5;

/// The disk of one server.
pub struct Machine {
    pub power: Power,
    place: Place,
}

/// One run of a server that is a cluster by itself, without its threads.
pub struct Server {
    driver: Driver,
    log: Log<Power>,
    store: Store<Place>,
    pub state: State,
    applied: Position,
    pending: Vec<Change>,
    checkpointed: u64,
}

/// What clients know: how often one was answered.
#[derive(Default, Clone, Copy, Debug)]
pub struct Acknowledged(pub u64);

impl Machine {
    fn new() -> Self {
        let power = Power::default();
        let place = Place::new(&power);
        Store::create_in(place.clone()).unwrap();
        Self { power, place }
    }

    pub fn back(&self, random: &mut Random) -> Self {
        let power = self.power.back(random);
        let place = self.place.back(&power, random);
        Self { power, place }
    }

    /// Starts the server, as the agent does.
    pub fn start(&self) -> Result<Server, String> {
        let (mut log, mut replay) = Log::open_on(self.power.clone(), SEGMENT).map_err(told)?;
        let store = Store::open_in(self.place.clone()).map_err(told)?.expect("it was created");
        let loaded = store.load::<Loading>().map_err(told)?;
        if loaded.installed {
            log.catch_up(&mut replay, loaded.checkpoint.position).map_err(told)?;
        }
        let founded = loaded.checkpoint.membership.voters.is_empty();
        let applied = loaded.checkpoint.position;
        let recovered = Recovered {
            base: replay.base,
            entries: replay.entries,
            hard_state: replay.hard_state,
            membership: if founded { Membership::founded_by(SERVER) } else { loaded.checkpoint.membership },
            applied: applied.index,
        };
        let settings = Settings { keep_bytes: 500, keep_for_laggards_bytes: 500, ..Settings::new(SERVER, 7) };
        let mut server = Server {
            driver: Driver::new(settings, recovered).map_err(told)?,
            log,
            store,
            state: loaded.rows.finish().map_err(told)?,
            applied,
            pending: Vec::new(),
            checkpointed: applied.index,
        };
        server.driver.campaign_if_alone();
        server.turns()?;
        Ok(server)
    }
}

impl Server {
    fn turns(&mut self) -> Result<(), String> {
        loop {
            let mut writes = Vec::new();
            while let Some(turn) = self.driver.turn() {
                writes.extend(turn.write);
                for entry in turn.committed {
                    if let Content::Command(bytes) = &entry.content {
                        let entry_of = Entry::decode(bytes).unwrap();
                        let outcome = self.state.apply(entry.position.index, Term(entry.position.term), &entry_of);
                        assert!(!matches!(outcome.answer.reply, Reply::Refused(_)), "{:?}", outcome.answer);
                        self.pending.extend(outcome.changes);
                    }
                    self.applied = entry.position;
                    self.driver.applied(entry.position.index);
                }
            }
            let Some(durable) = Write::write_all(writes, &mut self.log).map_err(told)? else { return Ok(()) };
            let _ = self.driver.persisted(durable);
        }
    }

    /// Returns once the command is applied.
    fn propose(&mut self, number: u64) -> Result<(), String> {
        let at = self.driver.propose(command(number).encode()).map_err(told)?;
        self.turns()?;
        assert!(self.applied.index >= at.index, "a cluster of one decides at once");
        if self.applied.index >= self.checkpointed + CHECKPOINT_EVERY { self.checkpoint() } else { Ok(()) }
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        let checkpoint = Checkpoint { position: self.applied, membership: self.driver.membership() };
        let record = self.driver.record_commit();
        let durable = Write::write_all(vec![record], &mut self.log).map_err(told)?.expect("it is one write");
        let commit = durable.commit();
        let _ = self.driver.persisted(durable);
        let mut changes = std::mem::take(&mut self.pending);
        changes.push(self.state.sessions_row());
        // The last change of a row is the one that counts.
        changes.reverse();
        changes.sort_by(|one, other| (one.table, &one.key).cmp(&(other.table, &other.key)));
        changes.dedup_by(|later, first| (later.table, &later.key) == (first.table, &first.key));
        self.store.commit(&changes, &checkpoint, commit).map_err(told)?;
        self.checkpointed = checkpoint.position.index;
        let needed = self.driver.checkpointed(checkpoint);
        self.log.release_before(needed).map_err(told)
    }

    /// Goes on with the history from this command until the power goes.
    pub fn work(&mut self, from: u64, acknowledged: &mut Acknowledged) -> Result<(), String> {
        for number in from..=COMMANDS {
            self.propose(number)?;
            acknowledged.0 = number;
        }
        Ok(())
    }
}

fn told(error: impl std::error::Error + 'static) -> String {
    blixard::error_chain(&error)
}

/// The commands of every history, in order; the first founds the cluster.
fn command(number: u64) -> Entry {
    let command = match number {
        0 => Command::Found {
            cluster: ClusterId::from_bytes([7; 16]),
            ca_certificate: vec![1],
            sealed_ca_key: vec![2],
            first: NewNode {
                name: "alpha".parse().unwrap(),
                address: "10.0.0.1:7420".parse().unwrap(),
                key: Hash::of(b"alpha"),
                understands: Level::NEWEST,
                role: blixard_core::types::NodeRole::Auto,
            },
            listed_servers: 1,
        },
        number if number % 7 == 6 => Command::RemoveVm { name: format!("vm{}", number - 1).parse().unwrap() },
        number => Command::PutVm {
            name: format!("vm{number}").parse().unwrap(),
            spec: VmSpec {
                runners: vec![format!("/nix/store/{}-vm{number}", "a".repeat(32)).parse().unwrap()],
                system: "x86_64-linux".to_owned(),
                hypervisor: Hypervisor::Qemu,
                vcpus: 1,
                memory_mib: number,
                memory_overhead_mib: None,
                disk_mib: 0,
                kvm: false,
                requires: Labels::new(),
                restart: RestartPolicy::Always,
                notifies: false,
                failover: Failover::Automatic,
                priority: Priority::default(),
                min_available: None,
            },
            running: false,
            must: None,
        },
    };
    let decided_in = (number == 0).then_some(Term(1)).filter(|_| command.is_decision());
    Entry { at: Timestamp(number), decided_in, request: None, command }
}

/// A state's rows. Of what has happened only how much: which entry did it depends on how often a leader has begun.
pub fn rows(state: &State) -> Vec<Change> {
    let row = |row: Change| if row.table == Table::Events { Change { value: None, ..row } } else { row };
    state.all_rows().into_iter().map(row).collect()
}

/// The state after each command, as its rows.
pub fn states() -> Vec<Vec<Change>> {
    let mut state = State::default();
    let after = |number| {
        state.apply(number + 1, Term(1), &command(number));
        rows(&state)
    };
    (0..=COMMANDS).map(after).collect()
}

/// A server that was founded, and how many writes that took.
pub fn founded() -> (Machine, Server) {
    let machine = Machine::new();
    let mut server = machine.start().unwrap();
    server.propose(0).unwrap();
    (machine, server)
}

#[derive(Default, Debug)]
struct Counts {
    cuts: u32,
    cuts_while_it_starts: u32,
    kept_more_than_acknowledged: u32,
    tried_from_a_checkpoint: u32,
}

/// Cuts the power at every `step`-th write of the history, beginning with `first`.
fn cut(first: usize, step: usize, seed: u64, counts: &mut Counts) {
    let states = states();
    let (machine, mut server) = founded();
    let before = machine.power.writes();
    server.work(1, &mut Acknowledged::default()).unwrap();
    let writes = machine.power.writes() - before;
    drop(server);
    for cut in (first..writes).step_by(step) {
        let at = format!("cut {cut} of {writes}, seed {seed}");
        let (machine, mut server) = founded();
        let mut acknowledged = Acknowledged::default();
        machine.power.cut_after(cut);
        server.work(1, &mut acknowledged).expect_err(&at);
        drop(server);
        let mut random = Random(seed ^ (cut as u64) << 20);
        let mut machine = machine.back(&mut random);
        // The power may go again while it starts.
        machine.power.cut_after(random.below(40));
        let again = machine.start().err();
        counts.cuts_while_it_starts += u32::from(again.is_some());
        machine = machine.back(&mut random);
        let mut server = machine.start().unwrap_or_else(|error| panic!("{at}: {error}"));
        let expected = acknowledged.0..=acknowledged.0 + 1;
        let found = expected.clone().find(|number| rows(&server.state) == states[usize::try_from(*number).unwrap()]);
        let found = found.unwrap_or_else(|| panic!("{at}: the state isn't that after {expected:?} commands"));
        counts.cuts += 1;
        counts.kept_more_than_acknowledged += u32::from(found > acknowledged.0);
        counts.tried_from_a_checkpoint += u32::from(server.checkpointed > 0);
        // It is as good as it was.
        server.work(found + 1, &mut acknowledged).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(Some(&rows(&server.state)), states.last(), "{at}");
    }
}

fn no_cut_loses_what_was_acknowledged(first: usize) {
    let mut counts = Counts::default();
    for seed in 0..SEEDS {
        cut(first, PARTS, seed, &mut counts);
    }
    println!("{counts:?}");
    assert!(counts.cuts >= 1_000, "{counts:?}");
    assert!(counts.cuts_while_it_starts > 100, "{counts:?}");
    assert!(counts.kept_more_than_acknowledged > 20 && counts.tried_from_a_checkpoint > 100, "{counts:?}");
}

/// Tests that share the cuts, so that they run side by side.
const PARTS: usize = 2;
const SEEDS: u64 = 11;

#[test]
fn no_cut_at_an_even_write_loses_what_was_acknowledged() {
    no_cut_loses_what_was_acknowledged(0);
}

#[test]
fn no_cut_at_an_odd_write_loses_what_was_acknowledged() {
    no_cut_loses_what_was_acknowledged(1);
}
