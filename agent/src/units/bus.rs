//! The connection to systemd over the system bus: calls, the ends of jobs, and that something has changed.
//!
//! One task owns the connection. It drains the signals at once, whoever waits for what, and connects and subscribes
//! anew when the bus has gone away; whoever waited for a job is told that its end wasn't seen.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{Select, select};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::AbortHandle;
use zbus::connection::Builder;
use zbus::match_rule::Builder as MatchRuleBuilder;
use zbus::message::Type;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::UNIT_INTERFACE;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// Calls that wait for an answer at a time; the bus itself refuses the 129th of a connection.
const MAX_CALLS: usize = 16;
/// Signals that may wait to be drained.
const MAX_SIGNALS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Ends of jobs that a waiter may be behind.
const MAX_ENDS: usize = 4096;
/// How long systemd may take to answer a call; one that reloads 2,000 units takes a second.
const MAX_ANSWER: Duration = Duration::from_secs(30);
/// How long a job may take: more than a unit's start timeout, and more than its stop timeout twice (asking, SIGTERM).
const MAX_JOB: Duration = Duration::from_secs(600);
/// Between two attempts to reach a bus that has gone away.
const RETRY: Duration = Duration::from_secs(1);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("cannot reach systemd on the system bus: is dbus running?")]
    Connect(#[source] Box<zbus::Error>),
    #[error("cannot reach systemd: the system bus has gone away; the agent connects again by itself")]
    Gone,
    #[error("cannot {method} through systemd")]
    Call { method: &'static str, source: Box<zbus::Error> },
    #[error("cannot tell how a job ended: the bus went away, or it took more than {} s", MAX_JOB.as_secs())]
    UnseenJob,
}

impl BusError {
    /// Whether systemd has answered that it has no such unit loaded.
    pub fn is_no_such_unit(&self) -> bool {
        let Self::Call { source, .. } = self else { return false };
        match &**source {
            zbus::Error::MethodError(name, ..) => name.as_str() == "org.freedesktop.systemd1.NoSuchUnit",
            zbus::Error::FDO(error) => matches!(**error, zbus::fdo::Error::UnknownObject(_)),
            _ => false,
        }
    }
}

/// What the waiters for jobs hear.
#[derive(Clone, Debug)]
enum JobNews {
    Ended { job: OwnedObjectPath, result: String },
    Lost,
}

/// A connection that is made anew as long as this lives.
#[derive(Debug)]
pub struct Bus {
    connection: watch::Receiver<Option<Connection>>,
    changes: watch::Receiver<u64>,
    jobs: broadcast::Sender<JobNews>,
    calls: Semaphore,
    keeper: AbortHandle,
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Bus {
    /// Connect, subscribe, and keep it so; `unit_prefixes` says of which units a change is news.
    ///
    /// # Errors
    /// [`BusError::Connect`] when the first attempt fails.
    pub async fn connect(unit_prefixes: &'static [&'static str]) -> Result<Self, BusError> {
        let first = open().await.map_err(|error| BusError::Connect(Box::new(error)))?;
        let (connection_tx, connection) = watch::channel(Some(first.0.clone()));
        let (changes_tx, changes) = watch::channel(0);
        let (jobs, _) = broadcast::channel(MAX_ENDS);
        let keeper = Keeper { connection: connection_tx, changes: changes_tx, jobs: jobs.clone(), unit_prefixes };
        let keeper = tokio::spawn(keeper.run(first)).abort_handle();
        Ok(Self { connection, changes, jobs, calls: Semaphore::new(MAX_CALLS), keeper })
    }

    /// A counter that goes up whenever one of the units may have changed, and after each new connection.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// One method of the manager.
    ///
    /// # Errors
    /// [`BusError::Gone`], [`BusError::Call`].
    pub async fn manager<B, R>(&self, method: &'static str, body: &B) -> Result<R, BusError>
    where
        B: Serialize + DynamicType + Sync,
        R: DeserializeOwned + zbus::Type,
    {
        self.call(PATH, MANAGER, method, body).await
    }

    /// One property of a unit; what holds it is the variant's type.
    ///
    /// # Errors
    /// [`BusError::Gone`], [`BusError::Call`].
    pub async fn property(
        &self,
        unit: &OwnedObjectPath,
        interface: &'static str,
        property: &'static str,
    ) -> Result<zbus::OwnedVariant, BusError> {
        self.call(unit.as_str(), PROPERTIES, "Get", &(interface, property)).await
    }

    /// A method of the manager that makes a job, and how that job ended.
    ///
    /// # Errors
    /// As [`Bus::begin_job`] and [`Job::end`].
    pub async fn job<B: Serialize + DynamicType + Sync>(
        &self,
        method: &'static str,
        body: &B,
    ) -> Result<String, BusError> {
        self.begin_job(method, body).await?.end().await
    }

    /// A method of the manager that makes a job.
    ///
    /// # Errors
    /// [`BusError::Gone`], [`BusError::Call`].
    pub async fn begin_job<B: Serialize + DynamicType + Sync>(
        &self,
        method: &'static str,
        body: &B,
    ) -> Result<Job, BusError> {
        // Before the call, since the job may be over before its answer is read.
        let news = self.jobs.subscribe();
        Ok(Job { path: self.manager(method, body).await?, news })
    }

    async fn call<B, R>(
        &self,
        path: &str,
        interface: &'static str,
        method: &'static str,
        body: &B,
    ) -> Result<R, BusError>
    where
        B: Serialize + DynamicType + Sync,
        R: DeserializeOwned + zbus::Type,
    {
        let connection = self.connection.borrow().clone().ok_or(BusError::Gone)?;
        let _permit = self.calls.acquire().await.expect("nobody closes the semaphore");
        let answer = connection.call_method(Some(SYSTEMD), path, Some(interface), method, body).await;
        answer
            .and_then(|answer| answer.body().deserialize())
            .map_err(|source| BusError::Call { method, source: Box::new(source) })
    }
}

/// A job of systemd's.
#[derive(Debug)]
pub struct Job {
    path: OwnedObjectPath,
    news: broadcast::Receiver<JobNews>,
}

impl Job {
    /// How it ended: `done`, `failed`, `canceled` ….
    ///
    /// # Errors
    /// [`BusError::UnseenJob`] when it may still run.
    pub async fn end(mut self) -> Result<String, BusError> {
        let end = async {
            loop {
                match self.news.recv().await {
                    Ok(JobNews::Ended { job, result }) if job == self.path => return Ok(result),
                    Ok(JobNews::Ended { .. }) => {}
                    Ok(JobNews::Lost) | Err(_) => return Err(BusError::UnseenJob),
                }
            }
        };
        tokio::time::timeout(MAX_JOB, end).await.unwrap_or(Err(BusError::UnseenJob))
    }
}

type Signals = Select<MessageStream, MessageStream>;

/// A connection whose signals are subscribed to before anything is asked.
async fn open() -> zbus::Result<(Connection, Signals)> {
    let connection = Builder::system().method_timeout(MAX_ANSWER).build().await?;
    let manager = signals().path(PATH).interface(MANAGER).build()?;
    let manager = MessageStream::for_match_rule(manager, &connection, Some(MAX_SIGNALS)).await?;
    let properties = MessageStream::for_match_rule(unit_changes()?, &connection, Some(MAX_SIGNALS)).await?;
    connection.call_method(Some(SYSTEMD), PATH, Some(MANAGER), "Subscribe", &()).await?;
    Ok((connection, select(manager, properties)))
}

fn signals() -> MatchRuleBuilder<'static> {
    MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD)
}

/// Each change of a unit, once: systemd tells of it by a signal for the unit's type, and then, always, by one for the unit.
fn unit_changes() -> zbus::Result<MatchRule<'static>> {
    let changes = signals().path_namespace(UNITS).interface(PROPERTIES).member("PropertiesChanged");
    changes.arg(0, UNIT_INTERFACE).build()
}

/// The task that owns the connection.
struct Keeper {
    connection: watch::Sender<Option<Connection>>,
    changes: watch::Sender<u64>,
    jobs: broadcast::Sender<JobNews>,
    unit_prefixes: &'static [&'static str],
}

impl Keeper {
    async fn run(self, (connection, mut signals): (Connection, Signals)) {
        self.drain(&connection, &mut signals).await;
        loop {
            self.connection.send_replace(None);
            // Nobody listens to this when nobody waits.
            let _ = self.jobs.send(JobNews::Lost);
            match open().await {
                Ok((connection, mut signals)) => {
                    tracing::info!("connected to the system bus again");
                    self.connection.send_replace(Some(connection.clone()));
                    self.changes.send_modify(|count| *count += 1);
                    self.drain(&connection, &mut signals).await;
                }
                Err(error) => tracing::warn!(%error, "the system bus is away"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until the connection ends: a rule's stream may outlive it, so both are watched.
    async fn drain(&self, connection: &Connection, signals: &mut Signals) {
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Some(Ok(signal)) => self.hear(&signal),
                    Some(Err(error)) => tracing::debug!(%error, "a signal that can't be read"),
                    None => return,
                },
                () = connection.closed() => return,
            }
        }
    }

    fn hear(&self, signal: &Message) {
        let header = signal.header();
        let unit = match header.member().map(zbus::names::MemberName::as_str) {
            Some("JobRemoved") => {
                let Ok((_, job, unit, result)) = signal.body().deserialize::<(u32, OwnedObjectPath, String, String)>()
                else {
                    return;
                };
                let _ = self.jobs.send(JobNews::Ended { job, result });
                unit
            }
            Some("UnitNew" | "UnitRemoved") => match signal.body().deserialize::<(String, OwnedObjectPath)>() {
                Ok((unit, _)) => unit,
                Err(_) => return,
            },
            Some("PropertiesChanged") => {
                let path = header.path().map_or("", |path| path.as_str());
                unescape(path.rsplit('/').next().unwrap_or_default())
            }
            _ => return,
        };
        if self.unit_prefixes.iter().any(|prefix| unit.starts_with(prefix)) {
            self.changes.send_modify(|count| *count += 1);
        }
    }
}

/// A unit's name, from the last element of its object's path: `_40` is `@`.
fn unescape(element: &str) -> String {
    let mut parts = element.split('_');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        name.extend(u8::from_str_radix(code, 16).map(char::from));
        name.push_str(rest);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use zbus::Variant;

    #[test]
    fn a_units_name_is_read_from_its_objects_path() {
        assert_eq!(unescape("blixard_2dvm_40web_2d0_2eservice"), "blixard-vm@web-0.service");
        assert_eq!(unescape("dbus_2eservice"), "dbus.service");
        assert_eq!(unescape("_"), "");
    }

    #[test]
    fn a_units_change_is_heard_once() {
        let is_heard = |interface| {
            let signal = Message::signal(format!("{UNITS}/web"), PROPERTIES, "PropertiesChanged");
            let signal = signal.build(&(interface, HashMap::<&str, Variant<'_>>::new(), [""; 0])).unwrap();
            unit_changes().unwrap().matches(&signal).unwrap()
        };
        assert!(!is_heard("org.freedesktop.systemd1.Service") && is_heard(UNIT_INTERFACE));
    }
}
