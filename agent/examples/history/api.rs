//! A client of an agent's socket, as the command line is one.

use std::path::{Path, PathBuf};

use blixard::api::proto;
use blixard::api::proto::api_client::ApiClient;
use blixard::cli;
use blixard_core::command::Presence;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::record::{Answer, Ask, Cell, Change, Value};
use crate::vm;

/// A connection, made anew after each failure.
pub struct Client {
    socket: PathBuf,
    connection: Option<ApiClient<Channel>>,
}

impl Client {
    pub fn of(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), connection: None }
    }

    /// Whether there is an agent to ask: a question that can't leave isn't one.
    pub async fn is_connected(&mut self) -> bool {
        if self.connection.is_none() {
            self.connection = cli::connect(&self.socket).await.ok();
        }
        self.connection.is_some()
    }

    /// What the agent answers; nothing where nobody knows what came of it.
    pub async fn ask(&mut self, ask: &Ask) -> Option<Answer> {
        // Whatever is under way when this is dropped, nobody waits for any more.
        let mut connection = self.connection.take()?;
        let answer = match ask {
            Ask::Change { register, change } => change_vm(&mut connection, register, *change).await,
            Ask::Read { registers } => match &registers[..] {
                // Half of those that look at one register ask why it is as it is.
                [register] => explain(&mut connection, register).await,
                _ => read(&mut connection, registers).await,
            },
        };
        match answer {
            Ok(answer) => {
                self.connection = Some(connection);
                Some(answer)
            }
            Err(status) => outcome(ask, &status),
        }
    }
}

async fn change_vm(client: &mut ApiClient<Channel>, register: &str, change: Change) -> Result<Answer, Status> {
    let name = register.to_owned();
    let index = match change {
        Change::Put { value, must } => {
            let json = serde_json::to_vec(&vm::spec(register, value.content)).expect("a VM has only text and numbers");
            let must = match must {
                None => proto::Presence::Any,
                Some(Presence::Absent) => proto::Presence::Absent,
                Some(Presence::Present) => proto::Presence::Present,
            };
            let request = proto::PutVmRequest { name, json, running: value.running, must: must.into() };
            client.put_vm(request).await?.into_inner().index
        }
        Change::SetRunning { running } => {
            client.set_vm_running(proto::SetVmRunningRequest { name, running }).await?.into_inner().index
        }
        Change::Remove => client.remove_vm(proto::RemoveVmRequest { name }).await?.into_inner().index,
    };
    Ok(Answer::Done { index })
}

async fn read(client: &mut ApiClient<Channel>, registers: &[String]) -> Result<Answer, Status> {
    let status = client.status(proto::StatusRequest::default()).await?.into_inner();
    let cluster = status.cluster.unwrap_or_default();
    if !cluster.confirmed {
        return Err(Status::deadline_exceeded("it is what that node knows"));
    }
    let cell = |register: &String| cell(status.instances.iter().find(|instance| instance.vm == *register));
    Ok(Answer::Cells { index: Some(cluster.applied), cells: registers.iter().map(cell).collect() })
}

async fn explain(client: &mut ApiClient<Channel>, register: &str) -> Result<Answer, Status> {
    let request = proto::ExplainRequest { vm: register.to_owned(), ..proto::ExplainRequest::default() };
    let explained = match client.explain(request).await {
        Ok(reply) => reply.into_inner().instances,
        Err(status) if status.code() == Code::NotFound => Vec::new(),
        Err(status) => return Err(status),
    };
    let instance = explained.first().and_then(|explained| explained.instance.as_ref());
    Ok(Answer::Cells { index: None, cells: vec![cell(instance)] })
}

/// An instance as a register; one that is being removed is none.
fn cell(instance: Option<&proto::Instance>) -> Cell {
    let instance = instance.filter(|instance| !instance.owner.is_empty())?;
    Some(Value { content: instance.disk_mib, running: instance.state != "stopped" })
}

/// What an error says of a change, by the words of the API: only an unknown outcome leaves open what came of it.
fn outcome(ask: &Ask, status: &Status) -> Option<Answer> {
    let Ask::Change { change, .. } = ask else { return None };
    let by_the_agent = std::error::Error::source(status).is_none();
    match status.code() {
        Code::FailedPrecondition if status.message().contains(vm::refusal(*change)) => {
            Some(Answer::Refused { index: None })
        }
        Code::FailedPrecondition | Code::ResourceExhausted if by_the_agent => Some(Answer::Nothing),
        Code::Unavailable if by_the_agent && vm::says_nothing_was_changed(status.message()) => Some(Answer::Nothing),
        _ => None,
    }
}
