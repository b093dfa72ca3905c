//! What is done inside Redis, because it must be done whole. A user's value has a line for each device,
//! `DEVICE NODE SESSION NUMBER UNTIL`; the time is Redis's own, in milliseconds, numbers are microseconds of it.

use ::redis::Script;

/// One line of a user's value.
const LINE: &str = "(%S+) (%S+) (%S+) (%d+) (%d+)\\n";

/// The scripts, prepared.
pub(super) struct Scripts {
    pub(super) register: Script,
    pub(super) refresh: Script,
    pub(super) remove: Script,
    pub(super) heartbeat: Script,
    pub(super) nodes: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let script = |text: &str| Script::new(&text.replace("LINE", LINE));
        Self {
            register: script(REGISTER),
            refresh: script(REFRESH),
            remove: script(REMOVE),
            heartbeat: script(HEARTBEAT),
            nodes: script(NODES),
        }
    }
}

/// `device node session again presence_ms` → `number [node session number]` of whom it replaced. `again` is the number of a
/// session that was registered before, else 0: such a one gives way to a newer one, and is then told of itself.
const REGISTER: &str = "
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local again, keep = tonumber(ARGV[4]), tonumber(ARGV[5])
local lines, last, same, old = {}, 0, false, nil
for device, node, session, number, till in string.gmatch(redis.call('GET', KEYS[1]) or '', 'LINE') do
  local lives = tonumber(till) > now
  if device == ARGV[1] then
    last = tonumber(number)
    if session == ARGV[3] then
      again, same = math.max(again, last), true
    elseif lives then
      old = {node, session, number}
    end
  elseif lives then
    lines[#lines + 1] = table.concat({device, node, session, number, till}, ' ') .. '\\n'
  end
end
if old and again > 0 and last > again then
  local own = string.format('%.0f', again)
  return {{own, ARGV[2], ARGV[3], own}}
end
local number = again > 0 and math.max(again, same and 0 or last + 1) or math.max(last + 1, micros)
number = string.format('%.0f', number)
lines[#lines + 1] = table.concat({ARGV[1], ARGV[2], ARGV[3], number, string.format('%.0f', now + keep)}, ' ') .. '\\n'
redis.call('SET', KEYS[1], table.concat(lines), 'PX', keep)
if old then
  return {{number, old[1], old[2], old[3]}}
end
return {{number}}
";

/// `presence_ms`, and a session for each key → 1 where it is there still and has its whole time again, else 0.
const REFRESH: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local keep = tonumber(ARGV[1])
local answers = {}
for i, key in ipairs(KEYS) do
  local lines, found = {}, 0
  for device, node, session, number, till in string.gmatch(redis.call('GET', key) or '', 'LINE') do
    if tonumber(till) > now then
      if session == ARGV[1 + i] then
        till, found = string.format('%.0f', now + keep), 1
      end
      lines[#lines + 1] = table.concat({device, node, session, number, till}, ' ') .. '\\n'
    end
  end
  if found == 1 then
    redis.call('SET', key, table.concat(lines), 'PX', keep)
  end
  answers[i] = found
end
return answers
";

/// `session` → 1 where it was there.
const REMOVE: &str = "
local lines, found = {}, 0
for device, node, session, number, till in string.gmatch(redis.call('GET', KEYS[1]) or '', 'LINE') do
  if session == ARGV[1] then
    found = 1
  else
    lines[#lines + 1] = table.concat({device, node, session, number, till}, ' ') .. '\\n'
  end
end
if found == 1 then
  if #lines == 0 then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], table.concat(lines), 'KEEPTTL')
  end
end
return {found}
";

/// `node value kept_ms` → as [`NODES`]; entries that nobody can need any more are removed.
const HEARTBEAT: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local answer = {string.format('%.0f', now), tostring(known)}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local seen = tonumber(string.match(all[i + 1], '^%d+') or '0')
  if now - seen > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    answer[#answer + 1] = all[i]
    answer[#answer + 1] = all[i + 1]
  end
end
return {answer}
";

/// → `now known (node value)…`, a value being `SEEN SESSIONS ROOM ADDRESS`.
const NODES: &str = "
local time = redis.call('TIME')
local answer = {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), '1'}
for _, text in ipairs(redis.call('HGETALL', KEYS[1])) do
  answer[#answer + 1] = text
end
return {answer}
";
