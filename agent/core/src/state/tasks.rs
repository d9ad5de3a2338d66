//! Run-once tasks: submitted, placed, over.

use super::{Refusal, State, Task, refuse};
use crate::command::{MAX_MESSAGE_CHARS, Reply, TaskPhase, TaskReport, TaskSpec};
use crate::types::{NodeId, TaskId, Timestamp};

/// Most tasks that are kept, those that are over included; the oldest that is over makes room.
const MAX_TASKS: usize = 1_000;
/// Most bytes of a task's command line.
const MAX_COMMAND_BYTES: usize = 64 << 10;

impl Task {
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Some(TaskPhase::Ended(_)))
    }
}

impl State {
    pub(super) fn run_task(&mut self, spec: &TaskSpec, at: Timestamp) -> Result<Reply, Refusal> {
        if spec.command.first().is_none_or(String::is_empty) {
            return refuse("the task has no command");
        }
        if spec.command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
            return refuse(format!("the task's command line has more than {MAX_COMMAND_BYTES} bytes"));
        }
        if spec.command.iter().any(|argument| argument.contains('\0')) {
            return refuse("the task's command line has a zero byte in it");
        }
        if spec.request.cpus == 0 || spec.request.memory_mib == 0 {
            return refuse("the task asks for no CPU or no memory: it needs at least 1 CPU and 1 MiB");
        }
        if self.tasks.len() >= MAX_TASKS {
            let over = self.tasks.iter().find(|(_, task)| task.is_over()).map(|(id, _)| *id);
            let Some(over) = over else {
                return refuse(format!(
                    "{MAX_TASKS} tasks wait or run, which is the most: try again when one has ended"
                ));
            };
            self.tasks.remove(&over);
            self.dirty.tasks.insert(over);
        }
        self.counters.task += 1;
        self.dirty.counters = true;
        let id = TaskId(self.counters.task);
        let task = Task {
            spec: spec.clone(),
            submitted_at: at,
            node: None,
            phase: None,
            phase_since: at,
            message: String::new(),
        };
        self.tasks.insert(id, task);
        self.dirty.tasks.insert(id);
        Ok(Reply::Task(id))
    }

    pub(super) fn place_task(&mut self, id: TaskId, node: NodeId, at: Timestamp) -> Result<Reply, Refusal> {
        let Some(task) = self.tasks.get(&id) else { return refuse(format!("there is no {id}")) };
        if task.node.is_some() {
            return refuse(format!("{id} is placed already"));
        }
        self.check_absent()?;
        self.check_open(node)?;
        self.check_room(node, task.spec.request)?;
        let task = self.tasks.get_mut(&id).expect("it was there just now");
        task.node = Some(node);
        task.phase_since = at;
        self.dirty.tasks.insert(id);
        Ok(Reply::Done)
    }

    /// A report of an unknown task, or of another node's, changes nothing: it is about the past.
    pub(super) fn report_task(&mut self, node: NodeId, report: &TaskReport, at: Timestamp) {
        let Some(task) = self.tasks.get_mut(&report.task) else { return };
        if task.node != Some(node) || task.is_over() || task.phase == Some(report.phase) {
            return;
        }
        task.phase = Some(report.phase);
        task.phase_since = at;
        task.message = report.message.chars().take(MAX_MESSAGE_CHARS).collect();
        self.dirty.tasks.insert(report.task);
    }
}
