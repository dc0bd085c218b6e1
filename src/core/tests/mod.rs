//! The rules of the core, each as a sentence, and a random walk that looks for the ones nobody thought of.

mod admission;
mod attempts;
mod breakers;
mod cancels;
mod disk;
mod drains;
mod footprints;
mod governed;
mod journal;
mod ladder;
mod limits;
mod memory;
mod outside;
mod pool;
mod processes;
mod reloads;
mod restarts;
mod retries;
mod schedules;
mod settled;
mod sim;
mod views;
mod waiting;
mod walk;
mod words;
mod world;
