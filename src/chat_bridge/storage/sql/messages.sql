-- name: receive
-- Store inbound messages: find or make each conversation's active session, give seq under its lock, insert the message,
-- note that it waits. Many rows at once, locked in the order of conversation_id.
-- A message whose event_key is known is only looked up. Two that race make this statement fail on messages_event:
-- it then stored nothing, and running it again finds the winner.
with input as (
  select *
  from unnest(
    $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::timestamptz[],
    $18::text[], $19::text[], $20::integer[], $21::text[]
  ) with ordinality as i (
    conversation_id, session_id, message_id, platform, account, platform_conversation_id, thread, user_id, user_name,
    username, locale, content_text, content_type, attachments, platform_message_id, event_key, sent_at,
    status, busy_policy, queue_cap, metadata, ord
  )
), looked as materialized (
  select
    i.*,
    known.id as known_id, known.seq as known_seq, known.session_id as known_session_id,
    known.content_text = i.content_text and known.sender_id = i.user_id
      and known.raw_text is not distinct from i.metadata::jsonb ->> 'raw_text' as same,
    s.answered_seq, s.pending_since,
    coalesce(s.metadata ->> 'busy_policy', i.busy_policy) as policy,
    (known.id is null)::integer as fresh,
    count(*) filter (where known.id is null) over (partition by i.conversation_id order by i.ord) as nth,
    count(*) filter (where known.id is null and i.status = 'accepted' and i.content_type <> 'command')
      over (partition by i.conversation_id order by i.ord) as nth_accepted
  from input i
  left join lateral (
    select m.id, m.seq, m.session_id, m.content_text, m.sender_id, m.metadata ->> 'raw_text' as raw_text
    from messages m
    where m.conversation_id = i.conversation_id and m.event_key = i.event_key
    limit 1
  ) known on true
  left join lateral (
    select s.answered_seq, s.pending_since, s.metadata
    from sessions s
    where s.conversation_id = i.conversation_id and s.status = 'active'
    limit 1
  ) s on true
), fresh as materialized (
  select
    l.*,
    case
      when l.status <> 'accepted' or l.content_type = 'command' then null
      when l.policy = 'reject' and l.waited + l.nth_accepted > 1
        and not coalesce(l.metadata::jsonb ? 'replay_of', false) then 'busy'
      when l.waited + l.nth_accepted > l.queue_cap then 'queue_full'
    end as refused,
    count(*) over (partition by l.conversation_id) as arrived
  from (
    select
      l.*,
      -- The queue is counted once for each conversation, not for each of its messages.
      max(case when l.nth = 1 then (
        select count(*)
        from (
          select 1
          from messages m
          where l.pending_since is not null
            and m.conversation_id = l.conversation_id and m.seq > l.answered_seq
            and m.direction = 'inbound' and m.status = 'accepted' and m.content_type <> 'command'
          order by m.seq
          limit l.queue_cap
        ) w
      ) end) over (partition by l.conversation_id) as waited
    from looked l
    where l.fresh > 0
  ) l
), grouped as materialized (
  select
    f.conversation_id,
    count(*) as arrived,
    max(f.nth) filter (where f.status = 'accepted' and f.refused is null) as last_accepted,
    (array_agg(f.session_id))[1] as session_id,
    min(f.platform) as platform,
    min(f.account) as account,
    min(f.platform_conversation_id) as platform_conversation_id,
    min(f.thread) as thread,
    -- who wrote first; not who was only the cause of an event
    (array_agg(f.user_id) filter (where f.content_type <> 'event'))[1] as user_id
  from fresh f
  group by f.conversation_id
), active as (
  insert into sessions as s (
    conversation_id, id, platform, account, platform_conversation_id, thread, user_id, parent_session_id,
    next_seq, message_count, answered_seq, last_inbound_seq, pending_since, last_activity
  )
  select
    g.conversation_id, g.session_id, g.platform, g.account, g.platform_conversation_id, g.thread, g.user_id,
    before.id, coalesce(before.next_seq, 1) + g.arrived, g.arrived, coalesce(before.next_seq, 1) - 1,
    coalesce(before.next_seq, 1) - 1 + coalesce(g.last_accepted, 0),
    case when g.last_accepted is not null then clock_timestamp() end,
    clock_timestamp()
  from grouped g
  left join lateral (
    -- For a new session. If the active one is closed at this moment, seq may meet messages_pkey; then nothing is
    -- stored, and the next try sees the close.
    select p.id, p.next_seq
    from sessions p
    where p.conversation_id = g.conversation_id
    order by p.next_seq desc, p.created_at desc -- an empty one has the seq of the one before
    limit 1
  ) before on true
  order by g.conversation_id
  on conflict (conversation_id) where status = 'active' do update set
    next_seq = s.next_seq + excluded.message_count,
    message_count = s.message_count + excluded.message_count,
    -- excluded.last_inbound_seq - excluded.answered_seq is the place of the last accepted one among the arrived
    last_inbound_seq = case
      when excluded.pending_since is null then s.last_inbound_seq
      else s.next_seq - 1 + excluded.last_inbound_seq - excluded.answered_seq
    end,
    pending_since = coalesce(s.pending_since, excluded.pending_since),
    user_id = coalesce(s.user_id, excluded.user_id),
    last_activity = excluded.last_activity
  returning s.conversation_id, s.id, s.next_seq, s.pending_since
), placed as materialized (
  select
    f.ord, f.conversation_id, f.message_id, f.content_type, f.content_text, f.event_key, f.sent_at, f.user_id,
    f.platform_message_id, f.attachments::jsonb as attachments, f.policy,
    a.id as session_id, a.next_seq - f.arrived + f.nth - 1 as seq,
    case when f.refused is null then f.status else 'skipped' end as status,
    case
      when f.refused is null then f.metadata::jsonb
      else coalesce(f.metadata::jsonb, '{}') || jsonb_build_object('reason', f.refused)
    end as metadata
  from fresh f
  join active a using (conversation_id)
), wait as (
  insert into waiting (conversation_id, session_id)
  select a.conversation_id, a.id
  from active a
  where a.pending_since is not null
  order by a.conversation_id
  on conflict do nothing
), stored as (
  insert into messages (
    conversation_id, seq, sent_at, id, session_id, direction, status, content_type, content_text, event_key,
    sender_id, platform_message_id, attachments, metadata
  )
  select
    p.conversation_id, p.seq, p.sent_at, p.message_id, p.session_id, 'inbound', p.status, p.content_type,
    p.content_text, p.event_key, p.user_id, p.platform_message_id, p.attachments, p.metadata
  from placed p
), files as (
  -- To be fetched, unless the message is refused: then nobody will read them. An upload is there already, and so is what
  -- a message that is received once more had, unless it could not be had.
  insert into attachments as a (conversation_id, key, seq, told)
  select distinct on (p.conversation_id, f ->> 'ref') p.conversation_id, sha256(convert_to(f ->> 'ref', 'UTF8')), p.seq, f
  from placed p
  cross join lateral jsonb_array_elements(p.attachments) f
  where p.status = 'accepted' or p.metadata ->> 'reason' = 'not_addressed'
  order by p.conversation_id, f ->> 'ref', p.seq
  on conflict (conversation_id, key) do update set
    seq = excluded.seq, -- the newest that has it: it lives as long as that one
    told = case a.status when 'failed' then excluded.told else a.told end,
    status = case a.status when 'failed' then 'waiting' else a.status end,
    error = null,
    lost = 0,
    created_at = case a.status when 'failed' then excluded.created_at else a.created_at end,
    next_attempt_at = case a.status when 'failed' then excluded.next_attempt_at else a.next_attempt_at end
  where a.seq is null or a.status = 'failed' or not starts_with(a.told ->> 'ref', 'upload:') -- one message has those
), people as (
  -- Written on change only: the usual case is one look at the primary key.
  insert into users as u (platform, account, platform_user_id, display_name, username, locale)
  select distinct on (f.platform, f.account, f.user_id)
    f.platform, f.account, f.user_id, f.user_name, f.username, f.locale
  from fresh f
  where not exists (
    select from users u
    where u.platform = f.platform and u.account = f.account and u.platform_user_id = f.user_id
      and u.display_name is not distinct from coalesce(f.user_name, u.display_name)
      and u.username is not distinct from coalesce(f.username, u.username)
      and u.locale is not distinct from coalesce(f.locale, u.locale)
  )
  order by f.platform, f.account, f.user_id, f.ord desc
  on conflict (platform, account, platform_user_id) do update set
    display_name = coalesce(excluded.display_name, u.display_name),
    username = coalesce(excluded.username, u.username),
    locale = coalesce(excluded.locale, u.locale),
    last_seen = clock_timestamp()
)
select p.ord, p.status, p.session_id, p.message_id as id, p.seq, p.metadata ->> 'reason' as reason, p.policy
from placed p
union all
select
  l.ord, case when l.same then 'duplicate' else 'conflict' end, l.known_session_id, l.known_id, l.known_seq, null, null
from looked l
where l.fresh = 0;

-- name: history_before
-- The newest messages before a seq, newest first, of all sessions or ($4) of one: one backward walk of the primary key.
-- `archived`: the newest seq there that an archive has, in every row; a row of nulls tells it if there is no message.
select h.*, a.archived
from (
  select max(p.last_seq) as archived
  from archived_sessions p
  where p.conversation_id = $1 and p.first_seq < $2 and ($4::uuid is null or p.session_id = $4)
) a
left join (
  select
    m.seq, m.id, m.session_id, m.direction, m.content_type, m.content_text, m.event_key, m.sender_id, m.created_at,
    m.attachments, m.metadata,
    case
      when m.status <> 'accepted' then m.status
      when m.seq > (
        select min(s.answered_seq) from sessions s where s.conversation_id = $1 and s.pending_since is not null
      ) then 'pending'
      else 'answered'
    end as status
  from messages m
  where m.conversation_id = $1 and m.seq < $2 and ($4::uuid is null or m.session_id = $4)
  order by m.seq desc
  limit $3
) h on true;

-- name: history_after
-- The messages that follow a seq, oldest first. `archived`: an archive has some of them; as in `history_before`.
select h.*, a.archived
from (
  select min(p.last_seq) as archived
  from archived_sessions p
  where p.conversation_id = $1 and p.last_seq > $2
) a
left join (
  select
    m.seq, m.id, m.session_id, m.direction, m.content_type, m.content_text, m.event_key, m.sender_id, m.created_at,
    m.attachments, m.metadata,
    case
      when m.status <> 'accepted' then m.status
      when m.seq > (
        select min(s.answered_seq) from sessions s where s.conversation_id = $1 and s.pending_since is not null
      ) then 'pending'
      else 'answered'
    end as status
  from messages m
  where m.conversation_id = $1 and m.seq > $2
  order by m.seq
  limit $3
) h on true;

-- name: find_message
-- Where a message is, by its id: the block range index leaves a few pages to look at.
select
  m.conversation_id, m.seq, m.id, m.session_id, m.turn_id, m.direction, m.status, m.content_type, m.event_key,
  m.sender_id, m.platform_message_id, m.agent_request_id, m.created_at, m.sent_at, m.metadata,
  s.platform, s.account, s.platform_conversation_id, s.thread, s.status as session_status, s.answered_seq,
  s.pending_since
from messages m
join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
where m.id = $1;

-- name: replies_of_turn
-- The replies a turn wrote, with their deliveries; they follow the turn's own messages.
select m.id, m.seq, m.content_type, m.created_at, m.attachments, m.metadata, d.part, d.status, d.attempts, d.sent_at,
  d.platform_message_id, d.error
from messages m
left join deliveries d on d.conversation_id = m.conversation_id and d.seq = m.seq
where m.conversation_id = $1 and m.turn_id = $2 and m.seq >= $3
order by m.seq, d.part;

-- name: edit
-- Add a version to a message, unless this change is known already or changes nothing that can be seen. `waiting`: the
-- message has no answer yet.
with found as materialized (
  select m.seq, m.id, m.session_id, m.status,
    coalesce(m.metadata -> 'versions' -> -1 ->> 'text', m.content_text) as newest,
    coalesce(
      (
        select v -> 'attachments'
        from jsonb_array_elements(m.metadata -> 'versions') with ordinality as e (v, nth)
        where v ? 'attachments'
        order by nth desc
        limit 1
      ),
      m.attachments, '[]'
    ) as files
  from messages m
  where m.conversation_id = $1 and m.event_key = $2
  for update -- if it is being archived, it will not be found
), changed as (
  update messages m
  set metadata = coalesce(m.metadata, '{}') || jsonb_build_object(
    'versions',
    case when jsonb_array_length(m.metadata -> 'versions') >= 100 then (m.metadata -> 'versions') - 0
      else coalesce(m.metadata -> 'versions', '[]') end || jsonb_build_array($4::jsonb)
  )
  from found f
  where m.conversation_id = $1 and m.seq = f.seq
    and not coalesce(m.metadata -> 'versions' @> jsonb_build_array(jsonb_build_object('key', $3::text)), false)
    and (
      $4::jsonb ? 'deleted' or f.newest is distinct from $4::jsonb ->> 'text'
      or f.files <> coalesce($4::jsonb -> 'attachments', f.files)
    )
  returning m.seq, m.status <> 'skipped' or m.metadata ->> 'reason' = 'not_addressed' as kept
), files as (
  insert into attachments as a (conversation_id, key, seq, told)
  select distinct on (v ->> 'ref') $1, sha256(convert_to(v ->> 'ref', 'UTF8')), c.seq, v
  from changed c
  cross join lateral jsonb_array_elements($4::jsonb -> 'attachments') v
  where c.kept
  on conflict (conversation_id, key) do update set
    seq = greatest(a.seq, excluded.seq),
    told = case a.status when 'failed' then excluded.told else a.told end,
    status = case a.status when 'failed' then 'waiting' else a.status end,
    error = null,
    lost = 0,
    created_at = case a.status when 'failed' then excluded.created_at else a.created_at end,
    next_attempt_at = case a.status when 'failed' then excluded.next_attempt_at else a.next_attempt_at end
  where a.status = 'failed' or a.seq < excluded.seq and not starts_with(a.told ->> 'ref', 'upload:')
)
select f.seq, f.id, f.session_id, c.seq is not null as changed,
  f.status = 'accepted' and s.pending_since is not null and f.seq > s.answered_seq as waiting
from found f
join sessions s on s.conversation_id = $1 and s.id = f.session_id
left join changed c on true;

-- name: lock_album
-- The message that an album is collected in; its session is held, so that no turn takes it meanwhile. The message is
-- held too, so that what another process added just before is seen; if it went to another session, it is not found.
select m.seq, m.id, m.session_id, m.status, m.metadata ->> 'reason' as reason,
  coalesce(m.metadata -> 'parts' ? $3, false) as known, coalesce(m.metadata -> 'late' ? $3, false) as late
from messages m
join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
where m.conversation_id = $1 and m.event_key = $2
for update of s, m;

-- name: add_to_album
-- Run after `lock_album`. Not returned: a turn has the message already, or it will not be answered though this part
-- should ($6).
with added as (
  update messages m
  set attachments = coalesce(m.attachments, '[]') || $4::jsonb,
    content_text = concat_ws(E'\n', nullif(m.content_text, ''), nullif($5, '')),
    metadata = m.metadata || jsonb_build_object('parts', m.metadata -> 'parts' || to_jsonb($3::text))
  from sessions s
  where m.conversation_id = $1 and m.seq = $2 and s.conversation_id = m.conversation_id and s.id = m.session_id
    and case
      when m.status = 'accepted' then s.pending_since is not null and m.seq > s.answered_seq and not exists (
        select from turns t
        where t.conversation_id = m.conversation_id and t.status = 'running' and t.last_seq >= m.seq
      )
      else not $6
    end
  returning m.id, m.conversation_id, m.seq, m.status = 'accepted' or m.metadata ->> 'reason' = 'not_addressed' as kept
), files as (
  insert into attachments as a (conversation_id, key, seq, told)
  select distinct on (f ->> 'ref') m.conversation_id, sha256(convert_to(f ->> 'ref', 'UTF8')), m.seq, f
  from added m
  cross join lateral jsonb_array_elements($4::jsonb) f
  where m.kept
  on conflict (conversation_id, key) do update set
    seq = greatest(a.seq, excluded.seq),
    told = case a.status when 'failed' then excluded.told else a.told end,
    status = case a.status when 'failed' then 'waiting' else a.status end,
    error = null,
    lost = 0,
    created_at = case a.status when 'failed' then excluded.created_at else a.created_at end,
    next_attempt_at = case a.status when 'failed' then excluded.next_attempt_at else a.next_attempt_at end
  where a.status = 'failed' or a.seq < excluded.seq and not starts_with(a.told ->> 'ref', 'upload:')
)
select id from added;

-- name: late_for_album
-- A part that came late is a message of its own, also when it comes again and the album could take it by then.
update messages m
set metadata = m.metadata || jsonb_build_object('late', coalesce(m.metadata -> 'late', '[]') || to_jsonb($3::text))
where m.conversation_id = $1 and m.seq = $2
returning m.id;

-- name: overheard
-- What was said since the agent last heard the group, before a turn's newest message, and not to the bot: the newest,
-- newest first. Looked for among the last thousand messages, so that no conversation is read from end to end.
select m.id, m.seq, m.sender_id, u.display_name, m.content_text, m.attachments, m.created_at, m.metadata,
  m.platform_message_id, m.content_type
from sessions s
cross join lateral (
  select m.*
  from messages m
  where m.conversation_id = s.conversation_id and m.session_id = s.id and m.seq < $3
    and m.seq > coalesce((s.metadata ->> 'heard_seq')::bigint, 0)
  order by m.seq desc
  limit 1000
) m
left join users u on u.platform = s.platform and u.account = s.account and u.platform_user_id = m.sender_id
where s.conversation_id = $1 and s.id = $2
  and m.status = 'skipped' and m.metadata ->> 'reason' = 'not_addressed'
order by m.seq desc
limit $4;
