//! `[limits]`.

use std::time::Duration;

use super::source::{MILLISECOND, MINUTE, SECOND, Source};

/// `[limits]`: what callers may ask of a replica, one by one and all together.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitsSection {
    /// `rate_limits`: whether callers are held to the rates below. Default true.
    pub rate_limits: bool,
    /// `reserve_burst`: how many clients a caller may reserve from at once. Default 1000.
    pub reserve_burst: u32,
    /// `reserve_per_minute`: and how many a minute in the long run. Default 1200.
    pub reserve_per_minute: u32,
    /// `target_burst`: how many Reserves a caller may make from one user at once. Default 30.
    pub target_burst: u32,
    /// `target_per_minute`: and how many a minute in the long run. Default 30.
    pub target_per_minute: u32,
    /// `owner_burst`: how many calls a caller may make about its own pool at once; an upload counts
    /// as one for every ten KeyPackages. Default 120.
    pub owner_burst: u32,
    /// `owner_per_minute`: and how many a minute in the long run. Default 60.
    pub owner_per_minute: u32,
    /// `max_requests_per_caller`: how many requests of a caller may be under way. Default 128.
    pub max_requests_per_caller: u32,
    /// `max_bytes_per_caller`: how much of their messages may be there. Default 16 MiB.
    pub max_bytes_per_caller: u32,
    /// `max_bytes`: the same of all callers together. Default 64 MiB.
    pub max_bytes: u32,
    /// `adder_places`: how many KeyPackages may be reserved or settled at once. Default 128.
    pub adder_places: u32,
    /// `adder_queue`: how many more may wait for that. Default 128.
    pub adder_queue: u32,
    /// `owner_places`: how many calls of owners are worked on at once. Default 32.
    pub owner_places: u32,
    /// `owner_queue`: how many more may wait for that. Default 128.
    pub owner_queue: u32,
    /// `max_wait`: how long a call of an adder may wait; one of an owner ten times as long.
    /// Default 100ms.
    pub max_wait: Duration,
    /// `standing_wait`: the same while somebody has been waiting for all of that time. Default 5ms.
    pub standing_wait: Duration,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self {
            rate_limits: true,
            reserve_burst: 1000,
            reserve_per_minute: 1200,
            target_burst: 30,
            target_per_minute: 30,
            owner_burst: 120,
            owner_per_minute: 60,
            max_requests_per_caller: 128,
            max_bytes_per_caller: 16 * 1024 * 1024,
            max_bytes: 64 * 1024 * 1024,
            adder_places: 128,
            adder_queue: 128,
            owner_places: 32,
            owner_queue: 128,
            max_wait: 100 * MILLISECOND,
            standing_wait: 5 * MILLISECOND,
        }
    }
}

impl LimitsSection {
    pub(super) fn read(source: &mut Source) -> Self {
        const MOST: u32 = 1_000_000;
        const MIB: u32 = 1024 * 1024;
        let default = Self::default();
        let read = source.read("limits.rate_limits", |given| given.boolean());
        let rate_limits = read.unwrap_or(default.rate_limits);
        let mut number = |key, default| source.number(key, default, 1..=MOST);
        let reserve_burst = number("limits.reserve_burst", default.reserve_burst);
        let reserve_per_minute = number("limits.reserve_per_minute", default.reserve_per_minute);
        let target_burst = number("limits.target_burst", default.target_burst);
        let target_per_minute = number("limits.target_per_minute", default.target_per_minute);
        let owner_burst = number("limits.owner_burst", default.owner_burst);
        let owner_per_minute = number("limits.owner_per_minute", default.owner_per_minute);
        let max_requests_per_caller =
            number("limits.max_requests_per_caller", default.max_requests_per_caller);
        let adder_places = number("limits.adder_places", default.adder_places);
        let owner_places = number("limits.owner_places", default.owner_places);
        let mut number = |key, default| source.number(key, default, 0..=MOST);
        let adder_queue = number("limits.adder_queue", default.adder_queue);
        let owner_queue = number("limits.owner_queue", default.owner_queue);
        let mut bytes = |key, default| source.number(key, default, MIB..=2048 * MIB - 1);
        let max_bytes_per_caller =
            bytes("limits.max_bytes_per_caller", default.max_bytes_per_caller);
        let max_bytes = bytes("limits.max_bytes", default.max_bytes);
        let max_wait = source.duration("limits.max_wait", default.max_wait, MILLISECOND..=MINUTE);
        let bounds = MILLISECOND..=30 * SECOND;
        let standing_wait = source.duration("limits.standing_wait", default.standing_wait, bounds);
        Self {
            rate_limits,
            reserve_burst,
            reserve_per_minute,
            target_burst,
            target_per_minute,
            owner_burst,
            owner_per_minute,
            max_requests_per_caller,
            max_bytes_per_caller,
            max_bytes,
            adder_places,
            adder_queue,
            owner_places,
            owner_queue,
            max_wait,
            standing_wait,
        }
    }
}
