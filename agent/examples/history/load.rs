//! Clients that change and read registers, each one thing at a time, and write down what they ask and are answered.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::command::Presence;
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use crate::record::{Answer, Ask, Change, Recorder, Value, read};
use crate::{api, member, vm};

/// Registers that are in use at a time.
const REGISTERS: u64 = 6;
/// A register's life, for the search's sake; then others take its place.
const LIFE_SECS: u64 = 1;
/// How often a client asks something, at most.
const PACE: Duration = Duration::from_millis(12);
/// Ticks that it waits after an outcome that it doesn't know: each of them doubles the work of a search.
const CALM_TICKS: usize = 25;
/// How long a client waits for an answer, in milliseconds; the agents themselves give up after five seconds.
const PATIENCE_MS: [u64; 3] = [300, 1500, 6000];
/// How long clients wait for their last answers when their time is over.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Longest that what is asked at the end is waited for.
const MAX_WAIT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Options {
    /// An agent's socket; may be repeated
    #[arg(long = "agent", value_name = "SOCKET", required = true)]
    agents: Vec<PathBuf>,
    /// Where an agent listens to the others; may be repeated
    #[arg(long = "member", value_name = "ADDRESS", requires = "store")]
    members: Vec<SocketAddr>,
    /// A copy of a member's store, by which the clients of members show who they are
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Clients of each agent
    #[arg(long, default_value_t = 2)]
    clients: u32,
    /// Clients of all members
    #[arg(long, default_value_t = 3)]
    member_clients: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What the clients' choices follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How the registers' names begin, which nobody had before
    #[arg(long)]
    prefix: String,
    /// The file to write
    #[arg(long)]
    history: PathBuf,
}

/// # Errors
/// What the clients need and isn't there.
pub async fn run(options: &Options) -> Result<(), String> {
    let file = |error: std::io::Error| format!("{}: {error}", options.history.display());
    let recorder = Arc::new(Recorder::append(&options.history, 1).map_err(file)?);
    let identity = options.store.as_deref().map(member::identity).transpose()?;
    let mut seeds = Rng::with_seed(options.seed);
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    let mut hand_out = |number| Client {
        number,
        recorder: recorder.clone(),
        prefix: options.prefix.clone(),
        begun,
        end: begun + Duration::from_secs(options.seconds),
        pace: pace(),
        rng: seeds.fork(),
    };
    let mut number = 0;
    for socket in &options.agents {
        for _ in 0..options.clients {
            number += 1;
            clients.spawn(hand_out(number).ask_agent(api::Client::of(socket)));
        }
    }
    for identity in identity.iter().flat_map(|identity| (0..options.member_clients).map(move |_| identity)) {
        number += 1;
        let mut client = hand_out(number);
        let members = member::Client::of(identity, &options.members, client.rng.fork());
        clients.spawn(client.ask_members(members));
    }
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| format!("a client ended: {error}"))?;
    }
    Ok(())
}

fn pace() -> Interval {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

struct Client {
    number: u32,
    recorder: Arc<Recorder>,
    prefix: String,
    begun: Instant,
    end: Instant,
    pace: Interval,
    rng: Rng,
}

impl Client {
    async fn ask_agent(mut self, mut agent: api::Client) {
        while Instant::now() < self.end {
            self.pace.tick().await;
            if !agent.is_connected().await {
                continue;
            }
            let id = self.recorder.draw();
            let ask = if self.rng.u8(..3) == 0 { self.choose_read() } else { self.choose_change(id) };
            let patience = Duration::from_millis(self.rng.choice(PATIENCE_MS).expect("there are some"));
            let patience = patience.min(self.left());
            self.recorder.asked(id, self.number, &ask);
            match timeout(patience, agent.ask(&ask)).await.ok().flatten() {
                Some(answer) => self.recorder.answered(id, answer),
                None => self.calm().await,
            }
        }
    }

    async fn ask_members(mut self, mut members: member::Client) {
        while Instant::now() < self.end {
            self.pace.tick().await;
            let id = self.recorder.draw();
            let ask = self.choose_change(id);
            let Ask::Change { register, change } = &ask else { continue };
            self.recorder.asked(id, self.number, &ask);
            let answer = timeout(self.left(), members.ask(register, *change)).await.ok().flatten();
            let is_certain = answer.as_ref().is_some_and(|answer| *answer != Answer::Nothing);
            match answer {
                Some(answer) => self.recorder.answered(id, answer),
                None => self.calm().await,
            }
            if is_certain
                && self.rng.u8(..4) == 0
                && let Some(answer) = members.ask_again(register, *change).await
            {
                self.recorder.answered(id, answer);
            }
        }
    }

    /// How long it may still wait for an answer.
    fn left(&self) -> Duration {
        (self.end + LAST_PATIENCE).saturating_duration_since(Instant::now())
    }

    async fn calm(&mut self) {
        for _ in 0..CALM_TICKS {
            self.pace.tick().await;
        }
    }

    /// One that is in use now, or was just before.
    fn choose_register(&mut self) -> String {
        let life = self.begun.elapsed().as_secs() / LIFE_SECS;
        let life = life.saturating_sub(u64::from(self.rng.u8(..5) == 0));
        let number = self.rng.u64(..REGISTERS);
        self.name(life, number)
    }

    fn name(&self, life: u64, number: u64) -> String {
        format!("{}-{life}-{number}", self.prefix)
    }

    fn choose_read(&mut self) -> Ask {
        if self.rng.bool() {
            return Ask::Read { registers: vec![self.choose_register()] };
        }
        let life = self.begun.elapsed().as_secs() / LIFE_SECS;
        let lives = life.saturating_sub(1)..=life;
        let registers = lives.flat_map(|life| (0..REGISTERS).map(move |number| (life, number)));
        Ask::Read { registers: registers.map(|(life, number)| self.name(life, number)).collect() }
    }

    fn choose_change(&mut self, id: u64) -> Ask {
        let register = self.choose_register();
        let value = Value { content: vm::LEAST_CONTENT + id, running: self.rng.bool() };
        let change = match self.rng.u8(..10) {
            0..3 => Change::Put { value, must: Some(Presence::Absent) },
            3..5 => Change::Put { value, must: None },
            5..6 => Change::Put { value, must: Some(Presence::Present) },
            6..8 => Change::SetRunning { running: value.running },
            _ => Change::Remove,
        };
        Ask::Change { register, change }
    }
}

#[derive(clap::Args)]
pub struct CloseOptions {
    /// An agent's socket; may be repeated
    #[arg(long = "agent", value_name = "SOCKET", required = true)]
    agents: Vec<PathBuf>,
    /// The file to go on with
    #[arg(long)]
    history: PathBuf,
}

/// Reads every register by every agent, for the history, and removes them all, which isn't part of it.
///
/// # Errors
/// What didn't answer.
pub async fn close(options: &CloseOptions) -> Result<(), String> {
    let operations = read(&options.history)?;
    let names = operations.iter().flat_map(|operation| operation.registers().iter().cloned());
    let registers: Vec<String> = names.collect::<BTreeSet<_>>().into_iter().collect();
    let next = operations.iter().map(|operation| operation.id).max().unwrap_or(0) + 1;
    let recorder = Recorder::append(&options.history, next).map_err(|error| error.to_string())?;
    let all = Ask::Read { registers: registers.clone() };
    for socket in &options.agents {
        let id = recorder.draw();
        recorder.asked(id, 0, &all);
        recorder.answered(id, insist(&mut api::Client::of(socket), &all).await?);
    }
    let mut agent = api::Client::of(&options.agents[0]);
    for register in registers {
        insist(&mut agent, &Ask::Change { register, change: Change::Remove }).await?;
    }
    Ok(())
}

/// Asks until there is an answer.
async fn insist(agent: &mut api::Client, ask: &Ask) -> Result<Answer, String> {
    let (begun, mut pace) = (Instant::now(), pace());
    loop {
        pace.tick().await;
        if agent.is_connected().await {
            match agent.ask(ask).await {
                None | Some(Answer::Nothing) => {}
                Some(answer) => return Ok(answer),
            }
        }
        if begun.elapsed() > MAX_WAIT {
            return Err(format!("no agent has answered {ask:?} within {MAX_WAIT:?}"));
        }
    }
}
