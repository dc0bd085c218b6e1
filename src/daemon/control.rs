//! The main thread after the start: signals, reload and the order of stopping.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender};

use super::logger::{self, LogFile};
use super::settings;
use super::signals::{Signal, Signals};
use crate::config::{self, Config};
use crate::core::notice::Notice;
use crate::gateway::{Command, Exchange};
use crate::memory::cgroup::Usher;
use crate::memory::{self, MonitorHandle};
use crate::scheduler::call::{Answer, ConfigStatus, Control, ReloadReport, ReloadStatus, Reply};
use crate::sys::clock::wall_ms;
use crate::sys::epoll::Epoll;
use crate::sys::eventfd::EventFd;

pub struct Main {
    pub path: PathBuf,
    pub config: Config,
    pub status: ConfigStatus,
    pub signals: Signals,
    pub log_file: LogFile,
    pub control_tx: Sender<Control>,
    pub monitor: MonitorHandle,
    pub commands_rx: Receiver<Command>,
    pub replies_tx: Sender<Reply<Box<Exchange>>>,
    pub drained_rx: Receiver<()>,
    /// Seats the supervisor in the next worker's cgroup: this thread has time to wait for the kernel.
    pub usher: Option<Usher>,
    /// Rung with a command, for the usher, and when draining is over.
    pub bell: Arc<EventFd>,
    pub max_body: Arc<AtomicU64>,
    pub min_free_disk: Arc<AtomicU64>,
    pub submit_rate: Arc<AtomicU32>,
}

const SIGNALS: u64 = 0;
const BELL: u64 = 1;

impl Main {
    /// Until the daemon has drained, or is told a second time to stop.
    pub fn run(mut self) -> std::io::Result<()> {
        let epoll = Epoll::new()?;
        epoll.add_for_good(self.signals.bell(), SIGNALS)?;
        epoll.add_for_good(&*self.bell, BELL)?;
        let mut is_draining = false;
        let mut ready = Vec::new();
        loop {
            ready.clear();
            epoll.wait(None, &mut ready)?;
            self.bell.hear();
            for signal in self.signals.take() {
                match signal {
                    Signal::Stop if is_draining => {
                        log::warn!(
                            "told to stop a second time: stopping at once; what ran is decided at the next start"
                        );
                        return Ok(());
                    }
                    Signal::Stop => {
                        self.drain();
                        is_draining = true;
                    }
                    Signal::Reload => drop(self.reload()),
                    Signal::ReopenLog => self.log_file.reopen(),
                    Signal::LogState => self.tell(Control::LogState),
                }
            }
            while let Ok(command) = self.commands_rx.try_recv() {
                match command {
                    // Told first: what is submitted after the answer is refused.
                    Command::Drain(waiter) => {
                        self.drain();
                        is_draining = true;
                        let _ = self.replies_tx.send(Reply { waiter, answer: Answer::Draining });
                    }
                    Command::Reload(waiter) => {
                        let answer = Answer::Reloaded(self.reload());
                        let _ = self.replies_tx.send(Reply { waiter, answer });
                    }
                }
            }
            if self.usher.as_mut().is_some_and(|usher| !usher.serve()) {
                self.usher = None;
            }
            if self.drained_rx.try_recv().is_ok() {
                log::info!("drained; stopping");
                return Ok(());
            }
        }
    }

    fn drain(&self) {
        let timeout = Duration::from_secs(self.config.daemon.drain_timeout_s);
        log::info!(
            "draining: new tasks are refused, running ones have {} s; stop again to stop at once",
            timeout.as_secs()
        );
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.tell(Control::Drain { timeout });
    }

    /// Takes the file and the environment again; the text of every problem if they are not valid.
    fn reload(&mut self) -> Result<ReloadReport, String> {
        let at_ms = wall_ms();
        match super::load(&self.path) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    log::warn!("{warning}");
                }
                let (effective, report) = config::reload(&self.config, loaded.config);
                self.config = effective;
                self.status.loaded_ms = at_ms;
                self.status.reload = Some(ReloadStatus { at_ms, error: None });
                self.apply(&report);
                Ok(ReloadReport { changed: report.changed, needs_restart: report.needs_restart })
            }
            Err(error) => {
                let text = error.to_string();
                self.status.reload = Some(ReloadStatus { at_ms, error: Some(text.clone()) });
                let notice = Box::new(Notice::ConfigRejected { text: text.clone() });
                self.tell(Control::Reconfigured { settings: None, status: self.status.clone(), notice });
                Err(text)
            }
        }
    }

    fn apply(&self, report: &config::ReloadReport) {
        logger::set_level(self.config.daemon.log_level);
        self.max_body.store(settings::mb(self.config.gateway.max_body_mb), Ordering::Relaxed);
        self.min_free_disk.store(settings::mb(self.config.spool.min_free_mb), Ordering::Relaxed);
        self.submit_rate.store(self.config.gateway.submit_rate_per_s, Ordering::Relaxed);
        self.monitor.send(memory::Message::Settings(settings::monitor_settings(&self.config)));
        let settings = Some(Box::new(settings::settings(&self.config)));
        let (changed, needs_restart) = (report.changed.join(" "), report.needs_restart.join(" "));
        let notice = Box::new(Notice::ConfigReloaded { changed, needs_restart });
        self.tell(Control::Reconfigured { settings, status: self.status.clone(), notice });
    }

    fn tell(&self, control: Control) {
        if self.control_tx.send(control).is_err() {
            log::error!("the scheduler is gone");
        }
    }
}
