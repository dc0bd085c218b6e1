//! From the configuration's words to the core's: durations, bytes, shared names.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Config, Source};
use crate::core::settings::{
    AgentMode, AgentSettings, BreakerSettings, Features, MemorySettings, Mode, QueueSettings, RetentionSettings,
    Runtime, ScheduleSettings, Settings, WorkerSettings,
};
use crate::core::task::Priority;
use crate::memory::{MonitorSettings, Sources};

pub fn settings(config: &Config) -> Settings {
    Settings {
        queue: QueueSettings {
            max_depth: config.queue.max_depth,
            priority_limits: config.queue.priority_limits.in_order(),
        },
        workers: workers(&config.workers),
        memory: memory(&config.memory),
        agents: config
            .agents
            .iter()
            .map(|(name, agent)| agent_settings(config, name, agent))
            .map(|agent| (agent.name.clone(), Arc::new(agent)))
            .collect(),
        breakers: config
            .breakers
            .iter()
            .map(|(name, breaker)| (Arc::from(name.as_str()), self::breaker(breaker)))
            .collect(),
        schedules: config.schedules.iter().map(|schedule| Arc::new(self::schedule(schedule))).collect(),
        features: Features {
            memory_governance: config.features.memory_governance,
            worker_pool: config.features.worker_pool,
            circuit_breakers: config.features.circuit_breakers,
            rollout_percent: config.features.rollout_percent,
            gc_on_pressure: config.gc_on_pressure,
        },
        retention: RetentionSettings { age: s(config.spool.retention_s), result_bytes: mb(config.spool.retention_mb) },
    }
}

pub fn monitor_settings(config: &Config) -> MonitorSettings {
    let memory = memory(&config.memory);
    MonitorSettings {
        interval: ms(config.memory.check_interval_ms),
        sources: Sources {
            budget: config.memory.sources.contains(&Source::Budget),
            cgroup: config.memory.sources.contains(&Source::Cgroup),
            host: config.memory.sources.contains(&Source::Host),
        },
        limit_bytes: memory.limit_bytes,
        min_free_bytes: memory.min_free_bytes,
        thresholds: memory.thresholds,
        hysteresis: memory.hysteresis,
    }
}

pub fn mb(megabytes: u64) -> u64 {
    megabytes << 20
}

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn workers(workers: &config::Workers) -> WorkerSettings {
    WorkerSettings {
        max: workers.max,
        idle_timeout: s(workers.idle_timeout_s),
        max_task_timeout: s(workers.max_task_timeout_s),
        spawn_timeout: s(workers.spawn_timeout_s),
        recycle_after_tasks: workers.recycle_after_tasks,
        max_restarts_per_hour: workers.max_restarts_per_hour,
        restart_backoff: workers.restart_backoff_ms.iter().map(|pause| ms(*pause)).collect(),
        cancel_grace: ms(workers.cancel_grace_ms),
        checkpoint_timeout: ms(workers.checkpoint_timeout_ms),
    }
}

fn memory(memory: &config::Memory) -> MemorySettings {
    MemorySettings {
        mode: match memory.mode {
            config::Mode::Observe => Mode::Observe,
            config::Mode::Soft => Mode::Soft,
            config::Mode::Hard => Mode::Hard,
        },
        limit_bytes: mb(memory.limit_mb),
        min_free_bytes: mb(memory.min_free_mb),
        thresholds: [memory.warning, memory.critical, memory.reject, memory.emergency],
        hysteresis: memory.hysteresis,
        settle: ms(memory.settle_ms),
    }
}

pub(super) fn agent_settings(config: &Config, name: &str, agent: &config::Agent) -> AgentSettings {
    AgentSettings {
        name: Arc::from(name),
        command: agent.command.clone(),
        mode: match agent.mode {
            config::AgentMode::Oneshot => AgentMode::Oneshot,
            config::AgentMode::Persistent => AgentMode::Persistent,
        },
        runtime: match agent.runtime {
            config::Runtime::Generic => Runtime::Generic,
            config::Runtime::Node => Runtime::Node,
        },
        cwd: agent.cwd.as_ref().map(|cwd| cwd.display().to_string()),
        user: agent.user.clone(),
        env: agent.env.clone(),
        env_pass: agent.env_pass.clone(),
        soft_limit_bytes: mb(config.soft_limit_mb(agent)),
        hard_limit_bytes: mb(config.hard_limit_mb(agent)),
        task_timeout: s(config.task_timeout_s(agent)),
        max_retries: agent.max_retries,
        preemptible: agent.preemptible,
        breaker: (!agent.breaker.is_empty()).then(|| Arc::from(agent.breaker.as_str())),
        max_workers: agent.max_workers,
        max_oom_kills: agent.max_oom_kills,
        oom_score_adj: config.workers.oom_score_adj,
        data_limit_bytes: agent.data_limit_mb.map(mb),
        has_kernel_limit: config.memory.mode == config::Mode::Hard && config.features.memory_governance,
    }
}

fn breaker(breaker: &config::Breaker) -> BreakerSettings {
    BreakerSettings {
        failure_threshold: breaker.failure_threshold,
        window: s(breaker.window_s),
        success_threshold: breaker.success_threshold,
        backoff: breaker.backoff_ms.iter().map(|pause| ms(*pause)).collect(),
    }
}

fn schedule(schedule: &config::Schedule) -> ScheduleSettings {
    ScheduleSettings {
        name: Arc::from(schedule.name.as_str()),
        agent: Arc::from(schedule.agent.as_str()),
        every: s(schedule.every_s),
        priority: priority(schedule.priority),
        skippable: schedule.skippable,
        max_skips: schedule.max_skips,
        payload: Arc::from(schedule.payload.as_bytes()),
    }
}

fn priority(priority: config::Priority) -> Priority {
    match priority {
        config::Priority::Critical => Priority::Critical,
        config::Priority::High => Priority::High,
        config::Priority::Normal => Priority::Normal,
        config::Priority::Low => Priority::Low,
        config::Priority::Heartbeat => Priority::Heartbeat,
    }
}
