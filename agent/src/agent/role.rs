//! One host in one role after the other: a server with log and state, or none, which follows the servers.
//!
//! ```text
//!             the cluster enlists it: the seat says so, then it begins with a blank log
//!   follower ────────────────────────────────────────────────────────────────────────▶ server
//!            ◀────────────────────────────────────────────────────────────────────────
//!             the cluster dismisses it: the seat says so, then log and state are removed
//! ```
//! Its units don't notice: they are observed anew, as after a restart of the agent.

use std::sync::Arc;

use blixard_core::command::Command;
use blixard_core::driver::{Driver, Settings};
use blixard_core::types::{ClientId, Hash, RaftId};
use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::boot::boot;
use super::data::{Data, Replica};
use super::inbound::Inward;
use super::renewal::{self, Renewer};
use super::servers::ServerThread;
use super::{AgentError, Told, Traits, notify, offer, stop, stopped};
use crate::api::{self, Stage};
use crate::config::Config;
use crate::identity::{self, Secrets};
use crate::node::{self, Common, End, Ended, Handle, Parts};
use crate::seat::Seat;
use crate::store::Store;
use crate::transport::{self, Directory, Transport};
use crate::units::{Units, UnitsError};
use crate::worker::lease::{self, Held};
use crate::worker::offer::Occasion;
use crate::{probe, worker};

/// What stays the same whatever the host is.
pub struct Host<U, F> {
    pub config: Config,
    pub traits: Traits,
    /// Nothing on a host that joins by a token.
    pub secrets: Option<Secrets>,
    pub stage: watch::Sender<Stage>,
    /// What other hosts ask of this one's API.
    pub api: api::Service,
    pub connect: F,
    /// From when they were first reached.
    pub units: Option<Arc<U>>,
    /// Whom systemd's watchdog asks.
    pub watchdog: watch::Sender<Option<Handle>>,
}

impl<U, F, C> Host<U, F>
where
    U: Units,
    F: Fn(Config) -> C,
    C: Future<Output = Result<U, UnitsError>>,
{
    /// Until it is told to stop, or can't go on.
    pub async fn run(&mut self, mut data: Data, told: &mut mpsc::Receiver<Told>) -> Result<(), AgentError> {
        let dir = data.dir.clone();
        loop {
            let Some(seat) = Box::pin(self.live(data, told)).await? else { return Ok(()) };
            self.stage.send_replace(Stage::Changing);
            tracing::info!(node = %seat.identity.node, raft = ?seat.raft, "this host has another role from now on");
            data = Data::begin_anew(dir.clone(), &seat.encode(&self.config)).await?;
        }
    }

    /// As what it is, until that ends; the seat by which it goes on, if it does.
    async fn live(&mut self, mut data: Data, told: &mut mpsc::Receiver<Told>) -> Result<Option<Seat>, AgentError> {
        let Self { config, traits, secrets, .. } = &*self;
        let (directory, directories) = watch::channel(Arc::default());
        let kept = data.kept.as_deref().and_then(Seat::cluster_of);
        let inward = Arc::new(Inward::new(secrets.clone(), traits.clock, kept, self.api.clone()));
        let settings = transport::Settings {
            listen: config.node.listen,
            own: config.own(),
            servers: config.servers().to_vec(),
            secrets: secrets.clone(),
            clock: traits.clock,
        };
        let servers = ServerThread::start();
        let transport = servers.run(Transport::start(settings, inward.clone(), directories.clone())).await;
        let transport = Arc::new(transport.map_err(AgentError::Transport)?);
        // Whoever waits for this unit mustn't wait for the other hosts.
        notify(&[NotifyState::Ready]);

        let tell = |reason| _ = self.stage.send_replace(Stage::Waiting(reason));
        let kept = data.kept.take();
        let seat = tokio::select! {
            seat = Seat::take(config, secrets.as_ref(), &mut data.store, kept, traits.understands, tell) => {
                seat.map_err(AgentError::Seat)?
            }
            () = stopped(told) => return Ok(None),
        };
        let identity = renewal::newest(&data.dir, &seat.identity);
        transport.become_member(&identity, seat.raft).map_err(AgentError::Transport)?;
        let (dir, clock) = (data.dir.clone(), traits.clock);
        directory.send_replace(Arc::new(seat.members.clone()));
        let common = Common {
            node: seat.identity.node,
            client: ClientId(u128::from_be_bytes(identity::random())),
            understands: traits.understands,
            transport: transport.clone(),
            directory,
        };
        if seat.raft.is_none() {
            data.give_up_replica()?;
        }
        let (store, (handle, ended)) = if let Some(raft) = seat.raft {
            let parts = self.parts(&seat, raft, data, common)?;
            (None, servers.run(async { node::start(parts) }).await)
        } else {
            let spent = seat.spent;
            (Some(data.store), servers.run(async move { node::follow(common, spent) }).await)
        };
        inward.open(handle.clone(), seat.identity.cluster);
        self.watchdog.send_replace(Some(handle.clone()));
        tracing::info!(node = %seat.identity.node, cluster = %seat.identity.cluster, raft = ?seat.raft, "this host is a member");

        let renewer = Renewer { dir, clock, handle: handle.clone(), inward, transport: transport.clone() };
        let renewing = tokio::spawn(renewer.run(identity));
        let life = Life { handle, ended, seat, store, directories };
        let result = self.attend(life, told).await;
        self.watchdog.send_replace(None);
        renewing.abort();
        // The next one writes the same file.
        let _ = renewing.await;
        transport.shutdown().await;
        result
    }

    /// What the event loop of a server is made of, with what lies on disk.
    fn parts(&self, seat: &Seat, raft: RaftId, data: Data, common: Common) -> Result<Parts, AgentError> {
        let Data { dir, store, replica, .. } = data;
        let Replica { log, recovered, state } = replica.expect("a server's data has one");
        if state.cluster().is_some() {
            common.directory.send_replace(Arc::new(node::directory_of(&state)));
        }
        let seed = u64::from_be_bytes(identity::random());
        let Traits { election_ticks, heartbeat_ticks, check_ticks, .. } = self.traits;
        let settings = Settings { election_ticks, heartbeat_ticks, ..Settings::new(raft, seed) };
        let driver = Driver::new(settings, recovered).map_err(|source| AgentError::Resume { path: dir, source })?;
        let founding = seat.founding.clone().filter(|_| state.cluster().is_none());
        Ok(Parts { common, raft, driver, log, store, state, founding, check_ticks })
    }

    /// Does what the agent is told, from when this host is a member until it is told to stop, has another role or can't
    /// go on.
    async fn attend(&mut self, life: Life, told: &mut mpsc::Receiver<Told>) -> Result<Option<Seat>, AgentError> {
        let Life { handle, mut ended, mut seat, mut store, mut directories } = life;
        if store.is_some() {
            self.stage.send_replace(Stage::Follower(handle.clone()));
        }
        let (mut tasks, mut offering) = (JoinSet::new(), JoinSet::new());
        let (config, connect) = (self.config.clone(), &self.connect);
        let lease = self.keep_lease(&handle, &mut tasks).await;
        let (founded, connected) = (handle.founded(), reached(self.units.clone(), connect, &config));
        let of_now = seat.clone();
        let same_cluster = of_now.check_cluster(&config, self.secrets.as_ref());
        tokio::pin!(same_cluster, founded, connected);
        let (mut checked, mut is_member, mut works) = (false, false, false);
        let result = loop {
            tokio::select! {
                result = &mut ended => break result.expect("the loop says how it ended").map_err(AgentError::Node),
                same = &mut same_cluster, if !checked => match same {
                    Ok(()) => checked = true,
                    Err(error) => break stop(&handle, &mut ended).await.and(Err(AgentError::Seat(error))),
                },
                known = &mut founded, if !is_member => {
                    is_member = true;
                    // If the loop has ended instead, `ended` says why.
                    if known.is_ok() {
                        if store.is_none() {
                            self.stage.send_replace(Stage::Member(handle.clone()));
                        }
                        offer(&config, &handle, Occasion::Start, &mut offering);
                    }
                }
                units = &mut connected, if is_member && !works => {
                    works = true;
                    let started = match units {
                        Ok(units) => {
                            self.units = Some(units.clone());
                            start_worker(&config, &handle, self.secrets.as_ref(), (units, lease.clone()), &mut tasks)
                        }
                        Err(error) => Err(AgentError::Units(error)),
                    };
                    if let Err(error) = started {
                        break stop(&handle, &mut ended).await.and(Err(error));
                    }
                }
                changed = directories.changed(), if store.is_some() => if changed.is_ok() {
                    seat.members = directories.borrow_and_update().as_ref().clone();
                    let store = store.as_mut().expect("it is there, or this isn't waited for");
                    if let Err(error) = seat.keep(&config, store) {
                        break stop(&handle, &mut ended).await.and(Err(AgentError::Seat(error)));
                    }
                },
                news = told.recv() => match news {
                    Some(Told::Stop) | None => break stop(&handle, &mut ended).await,
                    Some(Told::Reload) => offer(&config, &handle, Occasion::Reload, &mut offering),
                },
            }
        };
        tasks.shutdown().await;
        offering.shutdown().await;
        let servers = directories.borrow().servers_and(seat.identity.node);
        let end = result?;
        if end != End::Stopped {
            // Their answers come over the connections that end next.
            handle.settled().await;
        }
        Ok(match end {
            End::Stopped => None,
            End::Enlisted(raft) => Some(seat.enlisted(raft)),
            End::Dismissed => Some(seat.dismissed(servers)),
        })
    }

    /// How that stands, and where it is to be said that the cluster knows of this boot.
    async fn keep_lease(
        &self,
        handle: &Handle,
        tasks: &mut JoinSet<()>,
    ) -> (watch::Receiver<Held>, watch::Sender<bool>) {
        let (registered, is_registered) = watch::channel(false);
        let machine = self.traits.machine.as_ref().map(|machine| Hash::of(machine.as_str().as_bytes()));
        let held = lease::keep(handle.clone(), &self.config.node.run_dir, machine, is_registered, tasks).await;
        (held, registered)
    }
}

/// The host's units, which are connected to once.
async fn reached<U, F, C>(known: Option<Arc<U>>, connect: &F, config: &Config) -> Result<Arc<U>, UnitsError>
where
    F: Fn(Config) -> C,
    C: Future<Output = Result<U, UnitsError>>,
{
    match known {
        Some(units) => Ok(units),
        None => connect(config.clone()).await.map(Arc::new),
    }
}

/// A member in one role.
struct Life {
    handle: Handle,
    ended: Ended,
    seat: Seat,
    /// Of one that is no server, for its seat; a server's loop has it.
    store: Option<Store>,
    directories: watch::Receiver<Arc<Directory>>,
}

fn start_worker<U: Units>(
    config: &Config,
    handle: &Handle,
    secrets: Option<&Secrets>,
    (units, (mut held, registered)): (Arc<U>, (watch::Receiver<Held>, watch::Sender<bool>)),
    tasks: &mut JoinSet<()>,
) -> Result<(), AgentError> {
    let machine = probe::machine(&config.node.data_dir).map_err(AgentError::Probe)?;
    let offered = blixard_core::command::Worker {
        resources: config.offered(machine.resources),
        system: machine.system,
        kvm: machine.kvm,
        hypervisors: config.resources.hypervisors.clone().unwrap_or_else(|| machine.hypervisors.into_iter().collect()),
        labels: config.node.labels.clone(),
        no_fence: None,
    };
    let (own, address, role, secrets) =
        (handle.clone(), config.own().address, config.role(), secrets.map(Secrets::ids));
    let boot = boot(&config.node.run_dir).map_err(AgentError::Boot)?;
    let registering = move |no_fence: Option<String>| Command::RegisterWorker {
        node: own.node(),
        address: address.clone(),
        understands: own.understands(),
        role,
        worker: blixard_core::command::Worker { no_fence, ..offered.clone() },
        secrets,
        boot,
    };
    let (own, holds) = (handle.clone(), held.clone());
    tasks.spawn(async move {
        // First: what a person has said of this host's last boot is carried out by then, or refused.
        let mut said = held.borrow_and_update().no_fence.clone();
        worker::register(&own, registering(said.clone())).await;
        registered.send_replace(true);
        let again = async {
            while let Ok(held) = held.wait_for(|held| held.no_fence != said).await.map(|held| held.no_fence.clone()) {
                said = held;
                worker::register(&own, registering(said.clone())).await;
            }
        };
        tokio::join!(worker::work(own.clone(), units, holds), again);
    });
    Ok(())
}
