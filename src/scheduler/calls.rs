//! What the gateway asks, and what it is answered.

use std::sync::Arc;

use super::call::{Answer, Call, Decision, Reply, Request, Status, Why};
use super::waiting::Waiting;
use super::{CALLER, Caller, NOBODY, Scheduler};
use crate::core::event::{Answer as CoreAnswer, CancelAnswer, Event, Submission};
use crate::core::ids::Ticket;

impl<W: Send + 'static> Scheduler<W> {
    pub(super) fn call(&mut self, call: Call<W>) {
        let Call { from, waiter, request } = call;
        let mut caller = Caller { from, waiter, wait: None, breaker: None, task: None };
        let event = match request {
            Request::Submit { task, draft, wait } => {
                if let Some(answer) = self.storage_refusal_of(&draft) {
                    self.files.remove_inputs(task);
                    self.note_refused_for_storage(*draft, &answer);
                    return self.reply(caller.waiter, answer);
                }
                caller.wait = wait;
                caller.task = Some(task);
                let spec = Box::new(draft.complete(self.core.settings()));
                Event::Submitted { ticket: CALLER, task, spec }
            }
            Request::Probe { task, draft } => {
                let answer = self.probe(task, draft);
                return self.reply(caller.waiter, answer);
            }
            Request::Cancel { task } => {
                caller.task = Some(task);
                Event::CancelRequested { ticket: CALLER, task }
            }
            Request::Breaker { name, request } => {
                caller.breaker = Some(name.clone());
                Event::Breaker { ticket: CALLER, name, request }
            }
            query @ (Request::Task { .. }
            | Request::Tasks(_)
            | Request::Status
            | Request::Overview { .. }
            | Request::Health
            | Request::Scrape
            | Request::Decisions { .. }
            | Request::Why { .. }
            | Request::Ping) => {
                if matches!(query, Request::Status | Request::Overview { .. } | Request::Health | Request::Scrape) {
                    self.look_at_storage();
                }
                let now = self.now();
                self.core.look(now);
                let answer = self.query(query);
                return self.reply(caller.waiter, answer);
            }
        };
        self.caller = Some(caller);
        self.step(event);
        self.perform();
    }

    fn query(&self, query: Request) -> Answer {
        match query {
            Request::Task { task } => Answer::Task(self.core.task(task).map(Box::new)),
            Request::Tasks(filter) => Answer::Tasks(self.core.tasks(&filter)),
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Overview { decisions } => {
                Answer::Overview(Box::new(self.status()), self.last_decisions(decisions))
            }
            Request::Health => {
                self.publish_health();
                Answer::Health { health: self.core.health(), storage: self.storage.status() }
            }
            Request::Scrape => Answer::Scrape(Box::new((self.metrics.clone(), self.core.snapshot(self.now())))),
            Request::Decisions { limit } => Answer::Decisions(self.last_decisions(limit)),
            Request::Why { task } => Answer::Why(self.core.task(task).map(|view| {
                let about = |decision: &&Decision| decision.notice.task() == Some(task);
                let decisions = self.decisions.iter().rev().filter(about).cloned().collect();
                Box::new(Why { view, wait: self.core.waits_for(task), decisions })
            })),
            Request::Submit { .. }
            | Request::Probe { .. }
            | Request::Cancel { .. }
            | Request::Breaker { .. }
            | Request::Ping => Answer::Pong,
        }
    }

    fn status(&self) -> Status {
        let now = self.now();
        Status {
            snapshot: self.core.snapshot(now),
            config: self.config.clone(),
            uptime: now.at,
            storage: self.storage.status(),
            enforcement: self.enforcement.clone(),
            history: self.history.peaks(now.at),
        }
    }

    /// Newest first.
    fn last_decisions(&self, limit: usize) -> Vec<Decision> {
        self.decisions.iter().rev().take(limit).cloned().collect()
    }

    /// The reply to this turn's caller, unless it goes on waiting.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: CoreAnswer) -> Option<Reply<W>> {
        if ticket == NOBODY {
            return None;
        }
        let caller = self.caller.take()?;
        let answer = match answer {
            CoreAnswer::Submitted(Ok(submission)) => return self.submitted(caller, submission),
            CoreAnswer::Submitted(Err(refusal)) => {
                if let Some(task) = caller.task {
                    self.files.remove_inputs(task);
                }
                Answer::Refused(refusal)
            }
            CoreAnswer::Cancelled(answer) => {
                let view = caller.task.and_then(|task| self.core.task(task)).map(Box::new);
                let unwritten = self.unwritten_cancel().filter(|_| answer == CancelAnswer::Accepted);
                unwritten.unwrap_or(Answer::Cancelled(answer, view))
            }
            CoreAnswer::Breaker(answer) => {
                let name = caller.breaker.unwrap_or_else(|| Arc::from(""));
                let snapshot = self.core.breaker(&name, self.now());
                Answer::Breaker { answer, name, view: snapshot }
            }
        };
        Some(Reply { waiter: caller.waiter, answer })
    }

    fn submitted(&mut self, caller: Caller<W>, submission: Submission) -> Option<Reply<W>> {
        let Submission { task, is_duplicate } = submission;
        if is_duplicate && let Some(unused) = caller.task {
            self.files.remove_inputs(unused);
        }
        if let Some(answer) = self.unwritten().filter(|_| !is_duplicate) {
            // Why: it was taken in memory and could not be written: it must not run after the client heard no.
            self.core.release_key(task);
            self.step(Event::CancelRequested { ticket: NOBODY, task });
            return Some(Reply { waiter: caller.waiter, answer });
        }
        let Some(view) = self.core.task(task) else {
            return Some(Reply { waiter: caller.waiter, answer: Answer::Task(None) });
        };
        match caller.wait {
            Some(wait) if !view.state.is_terminal() && !wait.is_zero() && !self.gone.has(caller.from) => {
                let until = self.clock.now() + wait;
                self.waiting.push(Waiting { task, until, from: caller.from, waiter: caller.waiter, is_duplicate });
                None
            }
            Some(_) | None => {
                Some(Reply { waiter: caller.waiter, answer: Answer::Submitted { view: Box::new(view), is_duplicate } })
            }
        }
    }
}
