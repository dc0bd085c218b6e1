//! The rules of the core, each as a sentence, and a random walk that looks for the ones nobody thought of.

mod admission;
mod attempts;
mod breakers;
mod cancels;
mod drains;
mod footprints;
mod governed;
mod ladder;
mod limits;
mod memory;
mod model;
mod outside;
mod pool;
mod reloads;
mod restarts;
mod retries;
mod schedules;
mod sim;
mod views;
mod waiting;
mod walk;
mod world;
