-- name: conversations_after
-- A page of conversations in the order of their ids, each with what its policy depends on and its oldest message. A group
-- says so in what its members write, though not in all of it: the newest and the oldest 100 messages are looked at.
with page as materialized (
  select distinct s.conversation_id from sessions s where s.conversation_id > $1 order by s.conversation_id limit $2
)
select p.conversation_id, s.platform, s.account,
  exists (
    select
    from (
      select m.metadata from messages m where m.conversation_id = p.conversation_id order by m.seq desc limit 100
    ) m
    where m.metadata ? 'group'
  ) or exists (
    select
    from (
      select m.metadata from messages m where m.conversation_id = p.conversation_id order by m.seq limit 100
    ) m
    where m.metadata ? 'group'
  ) as is_group,
  oldest.created_at as oldest, exists (select from holds h where h.conversation_id = p.conversation_id) as held,
  exists (select from archived_sessions a where a.conversation_id = p.conversation_id) as archived
from page p
cross join lateral (
  select s.platform, s.account from sessions s where s.conversation_id = p.conversation_id limit 1
) s
left join lateral (
  select m.created_at from messages m where m.conversation_id = p.conversation_id order by m.seq limit 1
) oldest on true
order by p.conversation_id;

-- name: lock_expired_messages
-- Hold the oldest messages of conversations ($1) that are from before a moment ($2), at most $3 of each, and before them
-- their sessions, in the order in which every statement locks. What waits for an answer or is being sent stays for now; of
-- each conversation the oldest 1,000 are looked at, so that a few that stay do not keep what follows.
with old as materialized (
  select m.conversation_id, m.session_id, m.seq
  from unnest($1::uuid[], $2::timestamptz[]) as i (conversation_id, moment)
  cross join lateral (
    select o.conversation_id, o.session_id, o.seq
    from (
      select m.conversation_id, m.seq, m.session_id, m.created_at
      from messages m
      where m.conversation_id = i.conversation_id
      order by m.seq
      limit 1000
    ) o
    join sessions s on s.conversation_id = o.conversation_id and s.id = o.session_id
    where o.created_at < i.moment and (s.pending_since is null or o.seq <= s.answered_seq)
      and (
        select bool_or(d.status in ('pending', 'sending'))
        from deliveries d
        where d.conversation_id = o.conversation_id and d.seq = o.seq
      ) is not true
    order by o.seq
    limit $3
  ) m
)
select m.conversation_id, m.seq
from (select * from old order by conversation_id, session_id, seq) o
cross join lateral (
  select s.conversation_id
  from sessions s
  where s.conversation_id = o.conversation_id and s.id = o.session_id
    and (s.pending_since is null or o.seq <= s.answered_seq) -- once more, when it is held
  for update
) s
cross join lateral (
  select m.conversation_id, m.seq
  from messages m
  where m.conversation_id = s.conversation_id and m.seq = o.seq and m.session_id = o.session_id
  for update
) m;

-- name: expire_messages
-- Delete messages ($1, $2) with all that belongs to them, but for what is on hold, and at most $3 turns of each
-- conversation. Run after `lock_expired_messages`, so that it sees what was written while that waited.
with doomed as materialized (
  select m.conversation_id, m.seq, m.session_id, m.attachments, m.metadata
  from unnest($1::uuid[], $2::bigint[]) as i (conversation_id, seq)
  join messages m on m.conversation_id = i.conversation_id and m.seq = i.seq
  where not exists (select from holds h where h.conversation_id = m.conversation_id)
), shrunk as (
  update sessions s
  set message_count = greatest(0, s.message_count - d.messages)
  from (select conversation_id, session_id, count(*) as messages from doomed group by 1, 2) d
  where s.conversation_id = d.conversation_id and s.id = d.session_id
), gone as (
  delete from messages m
  using doomed d
  where m.conversation_id = d.conversation_id and m.seq = d.seq
  returning m.conversation_id, m.seq
), undelivered as (
  delete from deliveries x
  using doomed d
  where x.conversation_id = d.conversation_id and x.seq = d.seq
), turns_gone as (
  delete from turns t
  using (
    select o.conversation_id, o.id
    from (select conversation_id, max(seq) as seq from doomed group by 1) d
    cross join lateral (
      select t.conversation_id, t.id, t.last_seq, t.status
      from turns t
      where t.conversation_id = d.conversation_id
      order by t.id
      limit $3
    ) o
    where o.last_seq <= d.seq and o.status <> 'running'
  ) o
  where t.conversation_id = o.conversation_id and t.id = o.id
), files_gone as (
  -- A file that a later message has too goes with that one: its row names the newest.
  delete from attachments a
  using (
    select d.conversation_id, d.seq, sha256(convert_to(f ->> 'ref', 'UTF8')) as key
    from doomed d
    cross join lateral (
      select jsonb_array_elements(d.attachments) as f
      union all
      select jsonb_array_elements(v -> 'attachments') from jsonb_array_elements(d.metadata -> 'versions') v
    ) files
  ) f
  where a.conversation_id = f.conversation_id and a.key = f.key and a.seq = f.seq
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from files_gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select g.conversation_id, count(*) as messages, (select count(*) from files_gone) as all_files
from gone g
group by g.conversation_id;

-- name: count_expired
-- What `expire_messages` would delete in time: messages, their bytes and the bytes of their rows' files.
select count(*) as messages, coalesce(sum(pg_column_size(m.*)), 0) as bytes
from unnest($1::uuid[], $2::timestamptz[]) as i (conversation_id, moment)
cross join lateral (
  select m.*
  from messages m
  where m.conversation_id = i.conversation_id and m.created_at < i.moment and m.seq < coalesce(
    (
      select n.seq
      from messages n
      where n.conversation_id = i.conversation_id and n.created_at >= i.moment
      order by n.seq
      limit 1
    ),
    9223372036854775807
  )
) m;

-- name: drop_empty_sessions
-- Delete sessions of conversations ($1) in which nothing happened since a moment ($2), and of which no message is left.
-- `ended`: nothing of its conversation stays.
with empty as materialized (
  select s.conversation_id, s.id, s.next_seq, i.moment
  from unnest($1::uuid[], $2::timestamptz[]) as i (conversation_id, moment)
  join sessions s on s.conversation_id = i.conversation_id
  where s.last_activity < i.moment and s.pending_since is null and s.message_count <= 0 and s.status <> 'archived'
    and not exists (
      select from messages m
      where m.conversation_id = s.conversation_id and m.seq < s.next_seq and m.session_id = s.id
    )
    and not exists (select from turns t where t.conversation_id = s.conversation_id and t.status = 'running')
    and not exists (select from holds h where h.conversation_id = s.conversation_id)
  order by s.conversation_id, s.id
  for update of s
), ended as materialized (
  select distinct e.conversation_id, e.moment
  from empty e
  where not exists (
    select from sessions o where o.conversation_id = e.conversation_id and o.id not in (select x.id from empty x)
  )
), dead as materialized (
  -- The newest stays as long as any other does: it knows which seq comes next.
  select e.conversation_id, e.id
  from empty e
  where e.conversation_id in (select n.conversation_id from ended n)
    or exists (
      select from sessions o
      where o.conversation_id = e.conversation_id and (o.next_seq, o.id) > (e.next_seq, e.id)
    )
), turns_gone as (
  delete from turns t using dead d where t.conversation_id = d.conversation_id and t.session_id = d.id
), settled as (
  delete from waiting w using dead d where w.conversation_id = d.conversation_id and w.session_id = d.id
), files_gone as (
  -- But for what a visitor has just uploaded: its message is still to come.
  delete from attachments a
  using ended e
  where a.conversation_id = e.conversation_id and (a.seq is not null or a.created_at < e.moment)
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from files_gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
delete from sessions s
using dead d
where s.conversation_id = d.conversation_id and s.id = d.id
returning s.conversation_id, s.platform, s.account, s.thread, s.metadata ->> 'resource' as resource,
  s.conversation_id in (select e.conversation_id from ended e) as ended;

-- name: forget_move
-- A conversation moved, and nothing is left of it. Not returned: it did not, or something is there under this id.
delete from moves m
where m.conversation_id = $1 and not exists (select from sessions s where s.conversation_id = $1)
returning m.platform_conversation_id;

-- name: lock_expired_archives
-- Hold archived sessions of conversations ($1) in which nothing happened since a moment ($2), at most $3.
select s.conversation_id, s.id
from unnest($1::uuid[], $2::timestamptz[]) as i (conversation_id, moment)
join sessions s on s.conversation_id = i.conversation_id
where s.status = 'archived' and s.last_activity < i.moment
  and not exists (select from holds h where h.conversation_id = s.conversation_id)
order by s.conversation_id, s.id
limit $3
for update of s;

-- name: expire_archived_files
-- The files of archived sessions go with them, as far as no message of a later session has them; how many those are, and
-- how many messages.
with ranges as materialized (
  select p.conversation_id, p.session_id, min(p.first_seq) as first_seq, max(p.last_seq) as last_seq,
    sum(p.messages) as messages
  from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, session_id)
  join archived_sessions p on p.conversation_id = i.conversation_id and p.session_id = i.session_id
  where p.messages > 0
  group by p.conversation_id, p.session_id
), gone as (
  delete from attachments a
  using ranges r
  where a.conversation_id = r.conversation_id and a.seq between r.first_seq and r.last_seq
  returning a.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select (select count(*) from gone) as files, coalesce(sum(messages), 0)::bigint as messages from ranges;

-- name: empty_archived_sessions
-- Nothing is left of them; `drop_empty_sessions` deletes them. Run when no archive names them any more.
update sessions s
set status = 'closed', message_count = 0
from unnest($1::uuid[], $2::uuid[]) as i (conversation_id, id)
where s.conversation_id = i.conversation_id and s.id = i.id and s.status = 'archived'
returning s.id;

-- name: count_expired_archives
-- How many messages of a conversation are in archived sessions in which nothing happened since a moment.
select coalesce(sum(p.messages), 0)::bigint as messages
from sessions s
join archived_sessions p on p.conversation_id = s.conversation_id and p.session_id = s.id
where s.conversation_id = $1 and s.status = 'archived' and s.last_activity < $2;

-- name: expire_attachments
-- Files of conversations ($1) that were kept since before a moment ($2), at most $3: their bytes go, their messages stay.
-- Not if the newest message that has it is younger, or waits for its answer.
with old as materialized (
  select a.conversation_id, a.key, a.content_id
  from unnest($1::uuid[], $2::timestamptz[]) as i (conversation_id, moment)
  join attachments a on a.conversation_id = i.conversation_id
  where a.status = 'stored' and a.seq is not null and a.created_at < i.moment
    and not exists (
      select from messages m
      join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
      where m.conversation_id = a.conversation_id and m.seq = a.seq
        and (m.created_at >= i.moment or s.pending_since is not null and m.seq > s.answered_seq)
    )
    and not exists (select from holds h where h.conversation_id = a.conversation_id)
  limit $3
  for update of a skip locked
), gone as (
  update attachments a
  set status = 'failed', error = $4, content_id = null
  from old o
  where a.conversation_id = o.conversation_id and a.key = o.key
  returning o.content_id
), left_over as materialized (
  select c.id from contents c where c.id in (select content_id from gone) order by c.id for update
), unused as (
  update contents c
  set unused_since = clock_timestamp()
  from left_over l
  where c.id = l.id and c.unused_since is null
)
select count(*) as files from gone;

-- name: count_expired_attachments
-- What `expire_attachments` would take in time, and what goes with its message (before $3), with the bytes.
select count(*) as files, coalesce(sum(c.size), 0) as bytes
from (
  select conversation_id, greatest(alone, with_message) as moment
  from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[]) as u (conversation_id, alone, with_message)
) i
join attachments a on a.conversation_id = i.conversation_id
join contents c on c.id = a.content_id
where a.status = 'stored' and a.seq is not null and a.created_at < i.moment
  and not exists (
    select from messages m
    join sessions s on s.conversation_id = m.conversation_id and s.id = m.session_id
    where m.conversation_id = a.conversation_id and m.seq = a.seq
      and (m.created_at >= i.moment or s.pending_since is not null and m.seq > s.answered_seq)
  );

-- name: users_after
-- A page of people in the order of their keys.
select platform, account, platform_user_id
from users
where (platform, account, platform_user_id) > ($1, $2, $3)
order by platform, account, platform_user_id
limit $4;

-- name: expire_users
-- Forget people whose names nobody has seen change since a moment: who writes again is known again at once. Who began, or
-- wrote in, a conversation that is on hold stays; what is on hold is read only if somebody is to go.
with old as materialized (
  select u.platform, u.account, u.platform_user_id
  from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[]) as i (platform, account, platform_user_id, moment)
  join users u
    on u.platform = i.platform and u.account = i.account and u.platform_user_id = i.platform_user_id
    and u.last_seen < i.moment
), kept as materialized (
  select s.platform, s.account, s.user_id
  from holds h
  join sessions s on s.conversation_id = h.conversation_id
  where exists (select from old)
  union
  select s.platform, s.account, m.sender_id
  from holds h
  cross join lateral (
    select s.platform, s.account from sessions s where s.conversation_id = h.conversation_id limit 1
  ) s
  join messages m on m.conversation_id = h.conversation_id
  where exists (select from old)
)
delete from users u
using old o
where u.platform = o.platform and u.account = o.account and u.platform_user_id = o.platform_user_id
  and not exists (
    select from kept k
    where k.platform = u.platform and k.account = u.account and k.user_id = u.platform_user_id
  )
returning u.platform;

-- name: same_conversation
-- A conversation, and the other ids under which there is something of it: the platform gave it one that was in use already.
select $1::uuid as conversation_id
union
select s.conversation_id
from (
  select distinct platform, account, platform_conversation_id, thread from sessions where conversation_id = $1
) c
join sessions s on s.platform = c.platform and s.platform_conversation_id = c.platform_conversation_id
  and s.account = c.account and s.thread = c.thread;

-- name: hold
-- Put conversations on legal hold.
insert into holds (conversation_id, reason)
select i.conversation_id, $2 from unnest($1::uuid[]) as i (conversation_id)
on conflict (conversation_id) do update set reason = excluded.reason
returning conversation_id;

-- name: lift_hold
-- Not returned: they were not on hold.
delete from holds where conversation_id = any ($1::uuid[]) returning conversation_id;

-- name: holds
-- What is on hold, and where that is.
select h.conversation_id, h.created_at, h.reason, s.platform, s.account, s.platform_conversation_id, s.thread
from holds h
left join lateral (
  select * from sessions s where s.conversation_id = h.conversation_id limit 1
) s on true
order by h.created_at;
