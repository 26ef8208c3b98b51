//! The executions that run and that are remembered, by id; bounded in number and in what they hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::errors::{Code, Result, fail};
use crate::exec::record::Record;
use crate::limits;
use crate::sync::lock;

#[derive(Default)]
pub struct Table(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    records: HashMap<String, Arc<Record>>,
    /// Oldest first.
    order: Vec<String>,
}

impl Table {
    pub fn get(&self, id: &str) -> Result<Arc<Record>> {
        let record = lock(&self.0).records.get(id).cloned();
        record.ok_or_else(|| fail(Code::ExecutionNotFound, format!("no execution {id:?}")))
    }

    pub fn list(&self) -> Vec<Arc<Record>> {
        let entries = lock(&self.0);
        entries
            .order
            .iter()
            .filter_map(|id| entries.records.get(id).cloned())
            .collect()
    }

    pub fn running(&self) -> usize {
        lock(&self.0)
            .records
            .values()
            .filter(|record| !record.is_over())
            .count()
    }

    pub fn forget(&self, id: &str) -> Result<()> {
        if !self.get(id)?.is_over() {
            return Err(fail(Code::InvalidState, "the execution is still running"));
        }
        lock(&self.0).remove(id);
        Ok(())
    }

    /// Reserves an id, so that two Starts of one id cannot both launch.
    pub fn claim(&self, id: &str) -> Result<Claim<'_>> {
        let mut entries = lock(&self.0);
        if entries.order.iter().any(|known| known == id) {
            return Err(fail(
                Code::ExecutionExists,
                format!("execution {id:?} exists"),
            ));
        }
        entries.make_room()?;
        entries.order.push(id.to_owned());
        Ok(Claim {
            table: self,
            id: id.to_owned(),
            filled: false,
        })
    }
}

/// A reserved id; given back unless it is filled.
pub struct Claim<'a> {
    table: &'a Table,
    id: String,
    filled: bool,
}

impl Claim<'_> {
    pub fn fill(mut self, record: Arc<Record>) {
        self.filled = true;
        lock(&self.table.0).records.insert(self.id.clone(), record);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.table.0).remove(&self.id);
        }
    }
}

impl Entries {
    fn remove(&mut self, id: &str) {
        self.records.remove(id);
        self.order.retain(|known| known != id);
    }

    /// Lets the oldest finished records go while there are too many or they hold too much.
    fn make_room(&mut self) -> Result<()> {
        let finished = |record: &Record| record.is_settled();
        let memory = |record: &Record| record.stdout.memory() + record.stderr.memory();
        let mut held: usize = self
            .records
            .values()
            .filter(|record| finished(record))
            .map(|record| memory(record))
            .sum();
        let mut count = self.order.len();
        let mut gone = Vec::new();
        for id in &self.order {
            if count < limits::EXECUTIONS && held <= limits::REMEMBERED_BYTES {
                break;
            }
            if let Some(record) = self.records.get(id).filter(|record| finished(record)) {
                held -= memory(record).min(held);
                count -= 1;
                gone.push(id.clone());
            }
        }
        for id in gone {
            self.remove(&id);
        }
        if self.order.len() >= limits::EXECUTIONS {
            let message = format!("{} executions are running already", limits::EXECUTIONS);
            return Err(fail(Code::LimitExceeded, message));
        }
        Ok(())
    }
}
