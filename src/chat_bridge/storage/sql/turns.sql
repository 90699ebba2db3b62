-- name: claim
-- Take the right to answer: lock the session, load what waits in it, insert the turn; the unique index on running
-- turns decides. A command is a turn of its own; a /stop takes everything before it along. Messages whose turns were
-- lost again and again are taken one by one, so that only the one to blame is set aside.
-- The commit is not awaited to disk: a claim lost in a crash of the database only means that the messages still wait.
with wanted as (
  select *
  from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::integer[])
    as w (conversation_id, turn_id, agent, busy_policy, most)
), session as materialized (
  select w.turn_id, w.agent, w.most, s.*, coalesce(s.metadata ->> 'busy_policy', w.busy_policy) as policy
  from wanted w
  cross join lateral (
    select
      s.conversation_id, s.id, s.answered_seq, s.platform, s.account, s.platform_conversation_id, s.thread,
      s.user_id, s.metadata
    from sessions s
    where s.conversation_id = w.conversation_id and s.status = 'active' and s.last_inbound_seq > s.answered_seq
    for update
  ) s
), waiting as materialized (
  select
    s.turn_id, s.policy, coalesce((s.metadata ->> 'suspect_seq')::bigint, 0) as suspect_seq, m.*,
    row_number() over turn as nth,
    min(m.seq) over turn as first_seq,
    min(m.seq) filter (where m.content_type = 'command') over turn as command_seq,
    max(m.seq) filter (where m.content_type = 'command' and m.content_text = '/stop') over turn as stop_seq
  from session s
  cross join lateral (
    select
      m.seq, m.id, m.sender_id, m.content_type, m.content_text, m.attachments, m.created_at, m.metadata,
      m.platform_message_id
    from messages m
    where m.conversation_id = s.conversation_id and m.seq > s.answered_seq and m.session_id = s.id
      and m.direction = 'inbound' and m.status = 'accepted'
    order by m.seq
    limit s.most
  ) m
  window turn as (partition by s.turn_id order by m.seq rows between unbounded preceding and unbounded following)
), taken as materialized (
  select
    w.*,
    max(w.seq) over (partition by w.turn_id) as last_seq
  from waiting w
  where case
    when w.stop_seq is not null then w.seq <= w.stop_seq
    when w.command_seq = w.first_seq then w.seq = w.first_seq
    when w.policy = 'followup' or w.first_seq <= w.suspect_seq then w.seq = w.first_seq
    else w.seq < coalesce(w.command_seq, w.seq + 1)
  end
), claimed as (
  insert into turns (conversation_id, id, session_id, first_seq, last_seq, lease_until, owner, agent)
  select distinct on (s.conversation_id)
    s.conversation_id, s.turn_id, s.id, t.first_seq, t.last_seq, clock_timestamp() + $7::interval, $6, s.agent
  from session s
  join taken t on t.turn_id = s.turn_id
  order by s.conversation_id
  on conflict (conversation_id) where status = 'running' do nothing
  returning conversation_id, id
), passed_over as (
  update messages m
  set status = case when t.stop_seq is null then 'skipped' else 'cancelled' end,
    metadata = coalesce(m.metadata, '{}')
      || jsonb_build_object('reason', case when t.stop_seq is null then 'newer_message' else 'stopped' end)
  from claimed c
  join taken t on t.turn_id = c.id
  where m.conversation_id = c.conversation_id and m.seq = t.seq
    and t.seq < t.last_seq and (t.policy = 'latest' or t.stop_seq is not null)
)
select
  c.id as turn_id, c.conversation_id, s.id as session_id, s.platform, s.account, s.platform_conversation_id, s.thread,
  s.user_id, s.metadata as session_metadata, t.seq, t.id, t.sender_id, u.display_name, t.content_text, t.content_type,
  t.attachments, t.created_at, t.metadata, t.platform_message_id,
  set_config('synchronous_commit', 'off', true)
from claimed c
join session s on s.turn_id = c.id
join taken t on t.turn_id = c.id
left join users u
  on u.platform = s.platform and u.account = s.account and u.platform_user_id = t.sender_id
where t.seq = t.last_seq or (t.policy <> 'latest' and t.stop_seq is null)
order by c.id, t.seq;

-- name: read_albums
-- Messages of turns that were just claimed, as they are now: a claim that waited for its session saw them as they were.
select m.conversation_id, m.seq, m.content_text, m.attachments, m.metadata
from unnest($1::uuid[], $2::bigint[]) as i (conversation_id, seq)
join messages m on m.conversation_id = i.conversation_id and m.seq = i.seq;

-- name: complete
-- End turns: fence by the running row, store the reply with its files and its outbox rows, move the session's cursor. A
-- row that is not returned was not ours any more, and nothing was written for it.
-- Locks sessions first and turns then, each in the order of conversation_id, as every statement does: no deadlocks.
with input as (
  select *
  from unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[], $9::text[],
    $10::text[], $11::integer[], $12::boolean[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[]
  ) as i (
    conversation_id, turn_id, status, outcome, error, agent_request_id, usage, message_id, content_text,
    content_type, parts, error_text, metadata, session_metadata, preview, attachments, contents
  )
), held as materialized (
  -- `finished_at is null` says what `status = 'running'` says, but keeps the planner off the index on running turns,
  -- which it would read whole.
  select i.*, t.session_id, t.first_seq, t.last_seq, s.error_told_at
  from input i
  join turns t on t.conversation_id = i.conversation_id and t.id = i.turn_id and t.finished_at is null
  join sessions s on s.conversation_id = t.conversation_id and s.id = t.session_id
  order by s.conversation_id
  for update of s
), turn as (
  update turns t
  set status = h.status, outcome = h.outcome, error = h.error, usage = h.usage::jsonb, finished_at = clock_timestamp(),
    agent_request_id = h.agent_request_id
  from held h
  where t.conversation_id = h.conversation_id and t.id = h.turn_id and t.finished_at is null
  returning
    h.*,
    h.message_id is not null
      and not (h.error_text and coalesce(h.error_told_at > clock_timestamp() - interval '1 minute', false)) as tell
), session as (
  update sessions s
  set next_seq = s.next_seq + l.tell::integer,
    message_count = s.message_count + l.tell::integer,
    answered_seq = greatest(s.answered_seq, l.last_seq),
    pending_since = case when s.last_inbound_seq > l.last_seq then clock_timestamp() end,
    error_told_at = case when l.tell and l.error_text then clock_timestamp() else s.error_told_at end,
    metadata = case when l.session_metadata is null then s.metadata else s.metadata || l.session_metadata::jsonb end,
    last_activity = clock_timestamp()
  from turn l
  where s.conversation_id = l.conversation_id and s.id = l.session_id
  returning l.*, s.next_seq - 1 as seq, s.pending_since is not null as more
), settled as (
  delete from waiting w
  using session s
  where not s.more and w.conversation_id = s.conversation_id and w.session_id = s.session_id
), unanswered as (
  update messages m
  set status = l.status, metadata = coalesce(m.metadata, '{}') || jsonb_build_object('reason', l.outcome)
  from turn l
  where l.status in ('failed', 'cancelled') and m.conversation_id = l.conversation_id
    and m.seq between l.first_seq and l.last_seq and m.direction = 'inbound' and m.status = 'accepted'
), reply as (
  insert into messages (
    conversation_id, seq, id, session_id, turn_id, direction, status, content_type, content_text,
    agent_request_id, attachments, metadata
  )
  select
    s.conversation_id, s.seq, s.message_id, s.session_id, s.turn_id, 'outbound', 'stored', s.content_type,
    s.content_text, s.agent_request_id, s.attachments::jsonb, s.metadata::jsonb
  from session s
  where s.tell
), file as materialized (
  select s.conversation_id, s.seq, f.told, (s.contents::jsonb ->> (f.nth::integer - 1))::uuid as content_id
  from session s
  cross join lateral jsonb_array_elements(s.attachments::jsonb) with ordinality as f (told, nth)
  where s.tell
), kept as materialized (
  select c.id
  from contents c
  where c.id = any (array(select f.content_id from file f)) and c.status <> 'deleting'
  order by c.id
  for update
), content as (
  update contents c
  set status = 'stored', unused_since = null
  where c.id = any (array(select k.id from kept k))
), files as (
  -- A content that was kept more than an hour ago, by a turn as long as that, may be gone.
  insert into attachments (conversation_id, key, seq, told, status, content_id, error)
  select
    f.conversation_id, sha256(convert_to(f.told ->> 'ref', 'UTF8')), f.seq, f.told,
    case when k.id is null then 'failed' else 'stored' end, k.id,
    case when k.id is null then 'it is not kept any more' end
  from file f
  left join kept k on k.id = f.content_id
), outbox as (
  -- Our worker sends the first part now, unless an earlier reply is still on its way: one that we see, or a notice that
  -- was stored while we waited for the session. A part that waits is looked at soon, for the sender of the one before it
  -- may have ended while we were at this.
  insert into deliveries (
    conversation_id, seq, part, idempotency_key, status, attempts, next_attempt_at, platform_message_id
  )
  select
    s.conversation_id, s.seq, part, md5(s.message_id || ':' || part)::uuid,
    case when now then 'sending' else 'pending' end, now::integer,
    clock_timestamp() + case when now then interval '30 seconds' else interval '5 seconds' end,
    case when part = 1 then s.preview end
  from session s
  join sessions seen on seen.conversation_id = s.conversation_id and seen.id = s.session_id
  left join lateral (
    select d.status
    from deliveries d
    where d.conversation_id = s.conversation_id
    order by d.seq desc, d.part desc
    limit 1
  ) before on true
  cross join generate_series(1, s.parts) part
  cross join lateral (
    select part = 1 and coalesce(before.status not in ('pending', 'sending'), true)
      and seen.error_told_at is not distinct from s.error_told_at as now
  ) first
  where s.tell
  returning conversation_id, idempotency_key, attempts
)
select
  s.turn_id, s.more, case when s.tell then s.seq end as seq,
  (select o.idempotency_key from outbox o where o.conversation_id = s.conversation_id and o.attempts = 1) as send_key
from session s;

-- name: note
-- Merge into the session's metadata what a running turn has to leave behind in case it does not reach its end.
with held as materialized (
  -- The turn is held too, for it may end while we wait for the session.
  select s.conversation_id, s.id
  from turns t
  join sessions s on s.conversation_id = t.conversation_id and s.id = t.session_id
  where t.conversation_id = $1 and t.id = $2 and t.finished_at is null
  for update of s, t
)
update sessions s
set metadata = s.metadata || $3::jsonb
from held h
where s.conversation_id = h.conversation_id and s.id = h.id
returning s.id;

-- name: stored_reply
-- The reply that a turn has stored, if it has, and the key of its first part while nobody else has tried to send it.
select m.seq, d.idempotency_key as send_key
from messages m
left join deliveries d
  on d.conversation_id = m.conversation_id and d.seq = m.seq and d.part = 1 and d.status = 'sending' and d.attempts = 1
where m.conversation_id = $1 and m.seq > $2 and m.id = $3
order by m.seq
limit 1;

-- name: renew
-- Keep turns. A turn that is not returned is lost: its worker must stop.
with held as materialized (
  select t.conversation_id, t.id
  from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
  join turns t using (conversation_id, id)
  where t.finished_at is null
  order by t.conversation_id
  for update of t
)
update turns t
set lease_until = clock_timestamp() + $3::interval
from held h
where t.conversation_id = h.conversation_id and t.id = h.id
returning t.id;

-- name: supersede
-- Take the running turn away without an answer: its messages wait again, for a turn with the newer ones, or elsewhere.
update turns
set status = 'superseded', outcome = 'superseded', error = $3, finished_at = clock_timestamp()
where conversation_id = $1 and status = 'running' and id = coalesce($2, id)
returning id;

-- name: recover
-- Turns of these accounts ($2, $3) whose worker let the lease run out (or, with $1, all of them: when no other process
-- can exist).
-- A turn that is locked is being renewed or ended. If many were lost at once, the rest is for the next sweep.
with lost as materialized (
  select t.conversation_id, t.id
  from turns t
  join sessions s on s.conversation_id = t.conversation_id and s.id = t.session_id
  where t.status = 'running' and (t.lease_until < clock_timestamp() or $1)
    and exists (
      select from unnest($2::text[], $3::text[]) as a (platform, account)
      where a.platform = s.platform and a.account = s.account
    )
  limit case when $1 then null else 1000 end
  for update of t skip locked
)
update turns t
set status = 'superseded', outcome = 'superseded', error = 'the lease ran out', finished_at = clock_timestamp()
from lost l
where t.conversation_id = l.conversation_id and t.id = l.id
returning t.conversation_id, t.id;

-- name: lock_lost
-- Hold the sessions of turns that were lost, so that what waits in them is seen as it is.
select s.id
from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
join turns t on t.conversation_id = i.conversation_id and t.id = i.id
join sessions s on s.conversation_id = t.conversation_id and s.id = t.session_id
order by s.conversation_id, s.id
for update of s;

-- name: set_aside
-- Of the messages of lost turns, those that have lost so many ($3) have failed; those that have lost one less will be
-- taken alone. Run after `lock_lost`.
with suspect as materialized (
  select s.conversation_id, s.id as session_id, m.seq, c.times
  from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
  join turns l on l.conversation_id = i.conversation_id and l.id = i.id
  join sessions s on s.conversation_id = l.conversation_id and s.id = l.session_id and s.status = 'active'
  join messages m on m.conversation_id = l.conversation_id and m.seq between l.first_seq and l.last_seq
    and m.session_id = l.session_id and m.direction = 'inbound' and m.status = 'accepted'
  cross join lateral (
    select count(*) as times
    from turns t
    where t.conversation_id = m.conversation_id and t.status = 'superseded' and t.error = 'the lease ran out'
      and t.first_seq <= m.seq and t.last_seq >= m.seq
  ) c
  where c.times >= $3 - 1
), aside as (
  update messages m
  set status = 'failed', metadata = coalesce(m.metadata, '{}') || '{"reason": "lost_turns"}'
  from suspect g
  where g.times >= $3 and m.conversation_id = g.conversation_id and m.seq = g.seq
  returning m.conversation_id, m.session_id, m.id, m.seq
), left_over as materialized (
  select g.conversation_id, g.session_id, max(g.seq) as suspect_seq,
    bool_or(
      exists (
        select from messages m
        join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
        where m.conversation_id = g.conversation_id and m.session_id = g.session_id and m.seq > s.answered_seq
          and m.direction = 'inbound' and m.status = 'accepted'
          and m.seq not in (select o.seq from suspect o where o.conversation_id = m.conversation_id and o.times >= $3)
      )
    ) as more
  from suspect g
  group by g.conversation_id, g.session_id
), session as (
  update sessions s
  set metadata = s.metadata || jsonb_build_object('suspect_seq', l.suspect_seq),
    pending_since = case when l.more then s.pending_since end,
    answered_seq = case when l.more then s.answered_seq else greatest(s.answered_seq, s.last_inbound_seq) end
  from left_over l
  where s.conversation_id = l.conversation_id and s.id = l.session_id
  returning s.conversation_id, s.id, s.platform, s.account, s.platform_conversation_id, s.thread
), settled as (
  delete from waiting w
  using left_over l
  where not l.more and w.conversation_id = l.conversation_id and w.session_id = l.session_id
)
select a.conversation_id, a.session_id, a.id, s.platform, s.account, s.platform_conversation_id, s.thread
from aside a
join session s on s.conversation_id = a.conversation_id and s.id = a.session_id
order by a.conversation_id, a.seq;

-- name: find_pending
-- Conversations of these accounts with messages that wait and no turn: nobody is on them.
select s.conversation_id, s.platform
from waiting w
join sessions s on s.conversation_id = w.conversation_id and s.id = w.session_id
where exists (
    select from unnest($2::text[], $3::text[]) as a (platform, account)
    where a.platform = s.platform and a.account = s.account
  )
  and not exists (select from turns t where t.conversation_id = w.conversation_id and t.status = 'running')
order by s.pending_since
limit $1;

-- name: turns_of_message
-- The turns that took a message, in order.
select id, status, outcome, owner, agent, agent_request_id, error, usage, started_at, finished_at, first_seq, last_seq
from turns
where conversation_id = $1 and first_seq <= $2 and last_seq >= $2
order by started_at;

-- name: turn
-- One turn: the one that wrote a reply.
select id, status, outcome, owner, agent, agent_request_id, error, usage, started_at, finished_at, first_seq, last_seq
from turns
where conversation_id = $1 and id = $2;
