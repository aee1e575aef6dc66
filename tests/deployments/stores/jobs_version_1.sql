BEGIN TRANSACTION;
CREATE TABLE video_jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    negative_prompt TEXT NOT NULL,
    seconds INTEGER NOT NULL,
    size TEXT NOT NULL,
    fps INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    guidance REAL NOT NULL,
    seed INTEGER NOT NULL,
    created_at_s INTEGER NOT NULL,
    status TEXT NOT NULL,
    steps_done INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    completed_at_s INTEGER,
    expires_at_s INTEGER,
    error_code TEXT,
    error_message TEXT
) STRICT;
INSERT INTO "video_jobs" VALUES(1,'video_1','key_a','sora-2','a red circle ✓ moving ''left''','',2,'64x64',8,12,5.0,9223372036854775807,1000,'queued',0,0,NULL,NULL,NULL,NULL);
INSERT INTO "video_jobs" VALUES(2,'video_2','key_b','sora-2','a "square"
still','blur',2,'64x64',8,20,1.5,0,1001,'in_progress',7,1,NULL,NULL,NULL,NULL);
INSERT INTO "video_jobs" VALUES(3,'video_3','key_a','sora-2','c','',2,'64x64',8,12,5.0,9223372036854775807,1002,'completed',12,1,1100,NULL,NULL,NULL);
INSERT INTO "video_jobs" VALUES(4,'video_4','key_a','sora-2','d','',2,'64x64',8,12,5.0,9223372036854775807,1003,'failed',0,1,NULL,NULL,'engine_failed','why');
CREATE INDEX video_jobs_of_owner ON video_jobs (owner, seq);
CREATE INDEX video_jobs_unfinished ON video_jobs (seq) WHERE status IN ('queued', 'in_progress');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('video_jobs',4);
COMMIT;
PRAGMA user_version = 1;
