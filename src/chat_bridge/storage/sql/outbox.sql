-- name: sent_before
-- The message that a program sent under this key.
select id, seq, content_text, attachments from messages where conversation_id = $1 and event_key = $2;

-- name: store_message
-- Store a message of a program outside of any turn, with the uploads that it has ($9, their keys) and its outbox rows,
-- which the sweep sends too. Nothing is stored if one of the uploads is gone, or another message's. Run after
-- `lock_session`, so that it sees the reply that was stored just before. A `complete` that waits for the session does not
-- see these deliveries: that `error_told_at` has changed tells it that there are some.
with file as materialized (
  select f.key
  from unnest($9::bytea[]) as i (key)
  cross join lateral (
    select a.key
    from attachments a
    where a.conversation_id = $1 and a.key = i.key and a.seq is null and a.status = 'stored'
    limit 1
    for update
  ) f
), session as (
  update sessions s
  set next_seq = s.next_seq + 1, message_count = s.message_count + 1, last_activity = clock_timestamp(),
    error_told_at = coalesce(s.error_told_at, 'epoch') + interval '1 microsecond'
  where s.conversation_id = $1 and s.id = $2 and (select count(*) from file) = cardinality($9::bytea[])
  returning s.conversation_id, s.id, s.next_seq - 1 as seq
), message as (
  insert into messages (
    conversation_id, seq, id, session_id, direction, status, content_text, event_key, attachments, metadata
  )
  select conversation_id, seq, $3, id, 'outbound', 'stored', $4, $5, $6::jsonb, $7::jsonb
  from session
), files as (
  update attachments a
  set seq = s.seq
  from session s, file f
  where a.conversation_id = s.conversation_id and a.key = f.key
), outbox as (
  -- Due at once, unless an earlier one is on its way: its sender takes this one too.
  insert into deliveries (conversation_id, seq, part, idempotency_key, status, next_attempt_at)
  select
    s.conversation_id, s.seq, part, md5($3::uuid || ':' || part)::uuid, 'pending',
    clock_timestamp() + case when now then interval '0' else interval '5 seconds' end
  from session s
  left join lateral (
    select d.status
    from deliveries d
    where d.conversation_id = s.conversation_id
    order by d.seq desc, d.part desc
    limit 1
  ) before on true
  cross join generate_series(1, $8::integer) part
  cross join lateral (select part = 1 and coalesce(before.status not in ('pending', 'sending'), true) as now) first
)
select seq from session;

-- name: finish_deliveries
-- Record what the platform answered: receipts in bulk, fenced by the attempt that sent them. When that is final, the
-- next delivery of the conversation is taken at once, for the same sender; with `ends`, all that follow fail too.
-- The deliveries of a conversation are sent in the order of (seq, part), each when the one before it is final: so those
-- that are not final come last, and to know whether one may be sent is to look at the one before it.
with input as (
  select *
  from unnest(
    $1::uuid[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::double precision[],
    $8::integer[], $9::boolean[], $10::boolean[]
  ) as i (conversation_id, seq, part, status, platform_message_id, error, retry_seconds, attempt, ends, failure)
), ended as (
  update deliveries d
  set status = i.status,
    platform_message_id = coalesce(i.platform_message_id, d.platform_message_id),
    error = i.error,
    failures = d.failures + i.failure::integer,
    next_attempt_at = clock_timestamp() + make_interval(secs => i.retry_seconds),
    sent_at = case when i.status = 'sent' then clock_timestamp() else d.sent_at end
  from input i
  where d.conversation_id = i.conversation_id and d.seq = i.seq and d.part = i.part
    and d.status = 'sending' and d.attempts = i.attempt
  returning d.conversation_id, d.seq, d.part, d.status, d.error, i.ends
), refused as (
  update deliveries d
  set status = 'failed', error = e.error
  from ended e
  where e.ends and d.conversation_id = e.conversation_id and (d.seq, d.part) > (e.seq, e.part) and d.status = 'pending'
), next as materialized (
  select n.conversation_id, n.seq, n.part
  from ended e
  cross join lateral (
    select n.conversation_id, n.seq, n.part
    from deliveries n
    where n.conversation_id = e.conversation_id and (n.seq, n.part) > (e.seq, e.part)
    order by n.seq, n.part
    limit 1
  ) n
  where e.status <> 'pending' and not e.ends
), taken as (
  update deliveries d
  set status = 'sending', attempts = d.attempts + 1, next_attempt_at = clock_timestamp() + interval '30 seconds'
  from next n
  where d.conversation_id = n.conversation_id and d.seq = n.seq and d.part = n.part and d.status = 'pending'
  returning d.conversation_id, d.seq, d.part, d.attempts, d.failures, d.give_up_at < clock_timestamp() as last_try,
    d.idempotency_key, d.platform_message_id
)
select
  t.conversation_id, t.seq, t.part, t.attempts, t.failures, t.last_try, t.idempotency_key, t.platform_message_id,
  s.platform, s.account, s.platform_conversation_id, s.thread, m.id, m.content_text, m.attachments, m.metadata
from taken t
join messages m on m.conversation_id = t.conversation_id and m.seq = t.seq
join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id;

-- name: due_deliveries
-- Take deliveries of these accounts ($4, $5) that are due (of all conversations, or of $3), the first of each
-- conversation: waiting for a retry, or left in `sending` by a worker that died. The latter may have been sent: unless
-- sending again is safe ($2 lists the platforms where it always is, and a message that is changed may be changed twice)
-- they become `unknown`, for a person to see; one that ended its sender $6 times has failed. One that has another before
-- it is put off until after that.
with due as materialized (
  select d.conversation_id, d.seq, d.part, s.platform, s.account, s.platform_conversation_id, s.thread,
    m.id, m.content_text, m.attachments, m.metadata, d.status, before.next_attempt_at as not_before,
    d.status = 'sending' as left_behind,
    case
      when before.next_attempt_at is not null then d.status
      when d.status = 'sending' and s.platform <> all ($2::text[]) and d.platform_message_id is null then 'unknown'
      when d.status = 'sending' and d.failures + 1 >= $6 then 'failed'
      else 'sending'
    end as becomes
  from deliveries d
  join messages m on m.conversation_id = d.conversation_id and m.seq = d.seq
  join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
  left join lateral (
    -- Not only the one before it: dead letters that are tried again may lie between others that are sent.
    select b.next_attempt_at
    from deliveries b
    where b.conversation_id = d.conversation_id and (b.seq, b.part) < (d.seq, d.part)
      and b.status in ('pending', 'sending')
    order by b.seq, b.part
    limit 1
  ) before on true
  where d.status in ('pending', 'sending') and d.next_attempt_at <= clock_timestamp()
    and ($3::uuid is null or d.conversation_id = $3)
    and exists (
      select from unnest($4::text[], $5::text[]) as a (platform, account)
      where a.platform = s.platform and a.account = s.account
    )
  order by d.next_attempt_at, d.conversation_id, d.seq, d.part
  limit $1
  for update of d skip locked
), first as (
  select *
  from (
    select due.*, row_number() over (partition by conversation_id, not_before is null order by seq, part) as nth
    from due
  ) d
  where not_before is not null or nth = 1
)
update deliveries d
set status = f.becomes,
  error = case when f.left_behind then 'the sender stopped before it heard an answer' else d.error end,
  attempts = d.attempts + (f.not_before is null)::integer,
  failures = d.failures + (f.left_behind and f.not_before is null)::integer,
  next_attempt_at = case
    when f.not_before is not null then greatest(f.not_before + interval '10 seconds', clock_timestamp() + interval '1 second')
    when f.becomes = 'sending' then clock_timestamp() + interval '30 seconds'
    else clock_timestamp()
  end
from first f
where d.conversation_id = f.conversation_id and d.seq = f.seq and d.part = f.part
returning d.conversation_id, d.seq, d.part, d.status, d.attempts, d.failures,
  d.give_up_at < clock_timestamp() as last_try, d.idempotency_key, d.platform_message_id, f.platform, f.account,
  f.platform_conversation_id, f.thread, f.id, f.content_text, f.attachments, f.metadata,
  f.not_before;

-- name: renew_delivery
-- A sender is still at it. Not returned: somebody else has the delivery by now.
update deliveries
set next_attempt_at = clock_timestamp() + interval '30 seconds'
where conversation_id = $1 and seq = $2 and part = $3 and attempts = $4 and status = 'sending'
returning part;
